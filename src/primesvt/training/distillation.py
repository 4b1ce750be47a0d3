"""The loss of a fine-tuning: labels, the unpruned model's answers, and its block outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from primesvt.models import SpikingViT, reset
from primesvt.models.forward import hooked
from primesvt.training.config import FinetuneRecipe
from primesvt.training.run import heads_of

__all__ = ["Distillation", "answer_distance", "feature_distance"]


class Distillation:
    """``(1 - w) CE(labels) + w T^2 KL(teacher, student) + f D(blocks)``, averaged over heads.

    Args:
        student: the network that is trained.
        teacher: the unpruned network; ``None`` only where nothing is distilled.
        recipe: the weights ``w`` (``distillation``), ``f`` (``feature_weight``), the temperature
            ``T`` and the label smoothing.

    Raises:
        ValueError: no teacher for what is asked, or no blocks to compare.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531); block
    outputs as hints: Romero et al., "FitNets" (arXiv 1412.6550).
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, recipe: FinetuneRecipe
    ) -> None:
        wanted = recipe.distillation > 0 or recipe.feature_weight > 0
        if wanted and teacher is None:
            raise ValueError(
                "distillation needs the unpruned model; give teacher=, or set distillation to 0"
            )
        if recipe.compile and recipe.feature_weight > 0:
            raise ValueError(
                "block outputs cannot be watched in a compiled model; set compile to false, or "
                "feature_weight to 0"
            )
        self.recipe = recipe
        self.teacher = teacher.eval().requires_grad_(False) if wanted and teacher else None
        self._pairs = _pairs(student, self.teacher) if recipe.feature_weight > 0 else {}
        self._outputs: dict[nn.Module, Tensor] = {}

    def check(self, student: nn.Module, images: Tensor, labels: Tensor) -> int:
        """Run both networks on a few samples once and return the number of classes.

        Raises ``ValueError`` where student and teacher cannot be compared. Nothing of the student
        is changed.
        """
        training = student.training
        with torch.no_grad(), self.watching():
            try:
                output = student.eval()(images)
                self(output, images, labels)
            finally:
                student.train(training)
                reset(student)
        return heads_of(output)[0].shape[1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the block outputs to compare, of both networks, in a ``with`` block."""
        blocks = (block for pair in self._pairs.values() for block in pair)
        with hooked(block.register_forward_hook(self._note) for block in blocks):
            yield
        self._outputs.clear()

    def __call__(self, output: Any, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the student's output in training mode."""
        recipe = self.recipe
        heads = [head.float() for head in heads_of(output)]
        smoothing = recipe.label_smoothing
        losses = [F.cross_entropy(head, labels, label_smoothing=smoothing) for head in heads]
        loss = (1 - recipe.distillation) * torch.stack(losses).mean()
        if self.teacher is None:
            return loss
        answer = self._ask(images, heads[0])
        distances = [answer_distance(head, answer, recipe.temperature) for head in heads]
        loss = loss + recipe.distillation * torch.stack(distances).mean()
        if self._pairs:
            loss = loss + recipe.feature_weight * self._feature_distance()
        return loss

    def _ask(self, images: Tensor, like: Tensor) -> Tensor:
        """The teacher's logits ``[B, classes]``."""
        assert self.teacher is not None
        with torch.no_grad():
            answer = heads_of(self.teacher(images))[0].float()
        reset(self.teacher)
        if answer.shape != like.shape:
            raise ValueError(
                f"the teacher answers {list(answer.shape)} and the pruned model {list(like.shape)}"
                " [batch, classes]; give the unpruned model as teacher"
            )
        return answer

    def _note(self, block: nn.Module, _: Any, output: Any) -> None:
        self._outputs[block] = output

    def _feature_distance(self) -> Tensor:
        distances = []
        for name, (mine, theirs) in self._pairs.items():
            given, wanted = self._outputs[mine], self._outputs[theirs]
            if given.shape != wanted.shape:
                raise ValueError(
                    f"block {name} gives {list(given.shape)} and that of the teacher "
                    f"{list(wanted.shape)}, so their outputs cannot be compared (streams were "
                    "pruned); set feature_weight to 0"
                )
            distances.append(feature_distance(given, wanted))
        self._outputs.clear()
        return torch.stack(distances).mean()


def answer_distance(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """``T^2`` times the mean divergence of softened answers ``[B, classes]`` from those wanted.

    Example:
        >>> answer_distance(torch.ones(2, 3), torch.ones(2, 3), 4.0).item()
        0.0
    """
    given, target = (F.log_softmax(each / temperature, dim=1) for each in (logits, wanted))
    divergence = F.kl_div(given, target, log_target=True, reduction="batchmean")
    return divergence * temperature**2


def feature_distance(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of block outputs of any shape, as a share of the wanted ones' squares.

    Example:
        >>> feature_distance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).item()
        0.10000000149011612
    """
    given, wanted = given.float(), wanted.float()
    return (given - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


def _pairs(student: nn.Module, teacher: nn.Module | None) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Blocks of both networks by name."""
    if not isinstance(student, SpikingViT) or not isinstance(teacher, SpikingViT):
        raise ValueError(
            "block outputs are compared for models of the registry only; set feature_weight to 0"
        )
    theirs = dict(teacher.blocks.named_children())
    mine = dict(student.blocks.named_children())
    if mine.keys() != theirs.keys():
        raise ValueError(
            "the teacher has other blocks than the pruned model; set feature_weight to 0"
        )
    return {name: (block, theirs[name]) for name, block in mine.items()}

"""One training from fresh weights: all epochs, the best of them on the selection images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from primesvt.data import Splits
from primesvt.distributed import Processes
from primesvt.evaluation.evaluator import Progress, outcomes
from primesvt.models import DataConfig, SpikingViT
from primesvt.models.digest import data_digest
from primesvt.training.best import Best
from primesvt.training.config import TrainRecipe
from primesvt.training.loop import Loop, computes_in_bf16, learning_rate_factor
from primesvt.training.record import Score, TrainProgress, score_of, versions
from primesvt.training.snapshot import Snapshot

__all__ = ["Fit", "black", "heads_of", "learning_rate_factor"]


class Fit:
    """The moving parts of one training: the loop, and the best weights so far."""

    def __init__(
        self,
        model: SpikingViT,
        splits: Splits,
        recipe: TrainRecipe,
        config: DataConfig,
        processes: Processes,
        workers: int,
    ) -> None:
        assert splits.train is not None
        self.model, self.splits, self.recipe, self.config = model, splits, recipe, config
        self.processes, self.workers = processes, workers
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.weight, recipe.norm_weight)
        self.loop = Loop(
            model,
            splits.train,
            recipe,
            loss=self._loss,
            processes=processes,
            fill=black(config),
            classes=model.config.num_classes,
            workers=workers,
            bf16=computes_in_bf16(recipe.precision, processes.device),
        )
        self.best = Best()
        self.scored_at_once = max(recipe.batch_size, 128)
        self._begin, self._pace = time.monotonic(), 0.0
        self._began_with: list[int] = [processes.size]

    @property
    def seconds(self) -> float:
        """Since the beginning, without the time in which nothing ran."""
        return time.monotonic() - self._begin

    def run(
        self,
        progress: Progress,
        *,
        save: Callable[[], None],
        after_step: Callable[[], None],
        stop_after: float | None = None,
    ) -> bool:
        """What is left of all epochs, and whether they are done.

        ``save`` is called where an epoch has ended, ``after_step`` within epochs. No epoch begins
        that would, by the time the last one took, end more than ``stop_after`` seconds from now.
        """
        begin = last = time.monotonic()
        for number in range(len(self.loop.losses), self.recipe.epochs):
            steps = self.loop.order.steps - self.loop.step
            self.loop.epoch(progress, after_step)
            self._pace = steps * self.loop.order.batch_size / (time.monotonic() - last)
            judged = self.loop.result
            self.best.offer(judged, self.score(self.splits.selection, judged).accuracy)
            save()
            now = time.monotonic()
            late = stop_after is not None and 2 * now - last - begin > stop_after
            if number + 1 < self.recipe.epochs and self.processes.agree(late):
                return False
            last = now
        return True

    def score(self, dataset: Dataset[tuple[Tensor, int]], model: nn.Module | None = None) -> Score:
        """Top-1 accuracy in evaluation mode; of the network itself when no other is given."""
        correct = outcomes(
            model or self.model,
            dataset,
            batch_size=self.scored_at_once,
            device=self.processes.device,
            workers=self.workers,
            processes=self.processes,
        )
        return score_of(correct)

    def context(self) -> dict[str, Any]:
        """What the weights depend on beside the recipe."""
        assert self.splits.train is not None
        return {
            "training_images": len(cast(Sized, self.splits.train)),
            "selection_set": data_digest(self.splits.selection),
            "device": self.processes.device.type,
        }

    def progress(self) -> TrainProgress:
        """How far it has come."""
        return TrainProgress(
            recipe=self.recipe.to_dict(),
            data=self.splits.description(),
            versions=versions(),
            epochs_done=len(self.loop.losses),
            epochs=self.recipe.epochs,
            seconds=round(self.seconds, 1),
            images_per_second=round(self._pace, 1),
            loss=tuple(round(loss, 6) for loss in self.loop.losses),
            selection_accuracy=tuple(self.best.accuracies),
        )

    def snapshot(self) -> Snapshot:
        """Everything that the rest depends on."""
        loop, best = self.loop.snapshot(), self.best.snapshot()
        more = {"seconds": self.seconds, "began_with": self._began_with, "versions": versions()}
        facts = {**loop.facts, **best.facts, **more}
        return Snapshot(tensors={**loop.tensors, **best.tensors}, facts=facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from there."""
        self.loop.restore(snapshot)
        self.best.restore(snapshot, self.processes.device)
        self._begin -= snapshot.facts["seconds"]
        self._began_with = [*snapshot.facts["began_with"], self.processes.size]

    def notes(self) -> tuple[str, ...]:
        """What the weights depend on that the recipe does not say."""
        counts = sorted(set(self._began_with))
        if len(counts) == 1:
            return ()
        return (f"Stopped and gone on with other numbers of processes: {counts}.",)

    def _loss(self, output: Tensor | tuple[Tensor, ...], images: Tensor, targets: Tensor) -> Tensor:
        """Smoothed cross-entropy, averaged over the heads of a model that has two."""
        smoothing = self.recipe.label_smoothing
        heads = [head.float() for head in heads_of(output)]
        losses = [F.cross_entropy(head, targets, label_smoothing=smoothing) for head in heads]
        return torch.stack(losses).mean()


def heads_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The logits ``[B, classes]`` of every head, in training mode.

    Example:
        >>> len(heads_of((torch.zeros(1, 2), torch.zeros(1, 2))))
        2
    """
    return output if isinstance(output, tuple) else (output,)


def black(config: DataConfig) -> Tensor:
    """Black after normalisation, ``[C]``.

    Example:
        >>> black(DataConfig(input_size=(1, 8, 8), mean=(0.5,), std=(0.25,))).tolist()
        [-2.0]
    """
    return -torch.tensor(config.mean) / torch.tensor(config.std)

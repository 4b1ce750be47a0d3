"""The moving parts of one fine-tuning: the loop, the loss, and the best weights so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from primesvt.checkpoint.load import provenance_of
from primesvt.data import Splits
from primesvt.distributed import Processes
from primesvt.evaluation.batch_dependence import batch_note, mixing_of
from primesvt.evaluation.evaluator import DataEvaluator, Progress
from primesvt.models import SpikingViT
from primesvt.models.digest import data_digest, model_digest
from primesvt.profiling.costs import Accuracy, accuracy_of
from primesvt.pruning.inputs import check_no_nan
from primesvt.recovery.finetuning.recipe import FinetuneRecipe
from primesvt.recovery.finetuning.record import Scores
from primesvt.training.best import Best
from primesvt.training.distillation import Distillation
from primesvt.training.fit import black
from primesvt.training.loop import Loop, computes_in_bf16
from primesvt.training.record import shared_note
from primesvt.training.snapshot import Snapshot

__all__ = ["Tuning"]


class Tuning:
    """Trains the pruned network in place; the weights that it came with are candidate zero.

    Args:
        student: the pruned network.
        teacher: the unpruned one, where something is distilled.
        evaluate: measures networks on all sets.
        recipe: how to train.
        processes: those that share every batch.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: no training images, weights that are not finite, networks that cannot be
            compared, batches that cannot be shared.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        evaluate: DataEvaluator,
        recipe: FinetuneRecipe,
        processes: Processes,
        progress: Progress,
    ) -> None:
        self.student, self.evaluate, self.recipe = student, evaluate, recipe
        self.processes, self.progress = processes, progress
        self.bf16 = computes_in_bf16(recipe.precision, processes.device)
        self.notes: list[str] = []
        self._begin = time.monotonic()
        images = _training_images(evaluate.splits)
        check_no_nan(student)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("no parameter of the model may be trained; set requires_grad on some")
        self.share = processes.share(recipe.batch_size)
        self.context = self._context(teacher, images)
        self.start = {name: value.clone() for name, value in student.state_dict().items()}
        self.loss = Distillation(student, teacher, recipe)
        classes = self.loss.check(student, *self._few(images))
        self.loop = Loop(
            student,
            images,
            recipe,
            loss=self.loss,
            processes=processes,
            fill=_fill(student),
            classes=classes,
            workers=evaluate.workers,
            bf16=self.bf16,
            stage="fine-tuning",
        )
        self.best = Best(first=0)

    @property
    def seconds(self) -> float:
        """Since the beginning, without the time in which nothing ran."""
        return time.monotonic() - self._begin

    def run(self, save: Callable[[], None], after_step: Callable[[], None]) -> None:
        """What is left of all epochs; ``save`` is called where an epoch has ended."""
        if not self.best.accuracies:
            self._judge("measuring")
            save()
        for _ in range(len(self.loop.losses), self.recipe.epochs):
            with self.loss.watching():
                self.loop.epoch(self.progress, after_step)
            self._judge()
            save()

    def _judge(self, stage: str = "") -> None:
        judged = self.loop.result
        self.best.offer(judged, self.score(judged, "selection", stage).accuracy)

    def score(self, model: nn.Module, part: str, stage: str = "") -> Accuracy:
        """Top-1 of a network on the ``selection`` or ``test`` set; ``stage`` tells the progress."""
        dataset = getattr(self.evaluate.splits, part)
        progress = self.progress if stage else None
        measurement = self.evaluate.on(dataset, model, progress=progress, stage=stage)
        found = accuracy_of(measurement.value, _size(dataset))
        assert found is not None
        return found

    def conclude(self) -> dict[str, Scores | None]:
        """Figures of the three networks; the test set is read here, this once.

        The student has the best weights then.
        """
        accuracies, images = self.best.accuracies, _size(self.evaluate.splits.selection)
        found: dict[str, Scores | None] = {"unpruned": None}
        if self.loss.teacher is not None:
            found["unpruned"] = self._scores("unpruned", self.loss.teacher, None)
        before = accuracy_of(accuracies[0], images)
        self.student.load_state_dict(self.start)
        found["before"] = self._scores("pruned", self.student, before)
        self.best.give(self.student)
        kept = accuracy_of(accuracies[self.best.epoch], images)
        untouched = self.best.epoch == 0
        found["after"] = (
            found["before"] if untouched else self._scores("fine-tuned", self.student, kept)
        )
        return found

    def _scores(self, name: str, model: nn.Module, selection: Accuracy | None) -> Scores:
        stage, tested = f"measuring {name}", self.evaluate.splits.test is not None
        return Scores(
            selection=selection or self.score(model, "selection", f"{stage}, selection"),
            test=self.score(model, "test", f"{stage}, test") if tested else None,
        )

    def snapshot(self) -> Snapshot:
        """Everything that the rest depends on."""
        loop, best = self.loop.snapshot(), self.best.snapshot()
        facts = {**loop.facts, **best.facts, "notes": list(self.notes), "seconds": self.seconds}
        return Snapshot(tensors={**loop.tensors, **best.tensors}, facts=facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from there."""
        self.loop.restore(snapshot)
        self.best.restore(snapshot, self.processes.device)
        self.notes = list(snapshot.facts["notes"])
        self._begin -= snapshot.facts["seconds"]
        before, now = snapshot.facts["processes"], self.processes.size
        if before != now:
            self.notes.append(f"Begun with {before} process(es), gone on with {now}.")

    def all_notes(self) -> tuple[str, ...]:
        """What a reader must know beside the figures."""
        splits = self.evaluate.splits
        sets = {"selection": splits.selection, "test": splits.test}
        notes = [*shared_note(self.processes.size), *self.notes]
        mixing = mixing_of(self.student)
        if mixing:
            notes.append(
                f"The images of a batch influence each other in this model ({mixing}): trained in "
                f"batches of {self.share} in each process."
            )
        return (*notes, *batch_note(self.student, self.evaluate.batch_size, **sets))

    def _context(self, teacher: nn.Module | None, images: Dataset[Any]) -> dict[str, Any]:
        return {
            "pruned_model": model_digest(self.student),
            "teacher": None if teacher is None else model_digest(teacher),
            "time_steps": getattr(self.student, "time_steps", None),
            "training_images": _size(images),
            "selection_set": data_digest(self.evaluate.splits.selection),
            "batch_size": self.evaluate.batch_size,
            "device": self.processes.device.type,
            "precision": "bf16" if self.bf16 else "fp32",
        }

    def _few(self, images: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """Two training samples, on the device."""
        few = Subset(images, range(min(2, _size(images))))
        samples, labels = next(iter(DataLoader(few, batch_size=2)))
        return samples.to(self.processes.device), labels.to(self.processes.device)


def _training_images(splits: Splits) -> Dataset[Any]:
    if splits.train is None:
        raise ValueError(
            f"{splits.name} has no training {splits.unit}; give data with a train part"
        )
    return splits.train


def _fill(model: nn.Module) -> Tensor:
    """Black, or zero where nobody knows what black is."""
    if isinstance(model, SpikingViT):
        return black(provenance_of(model).data)
    return torch.zeros(1)


def _size(dataset: Dataset[Any]) -> int:
    return len(cast(Any, dataset))

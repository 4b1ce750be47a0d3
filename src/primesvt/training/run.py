"""``train``: train a model from a recipe and write its folder, resuming where it was stopped."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from primesvt._files import validated
from primesvt._guard import check_counts
from primesvt.checkpoint.folder import load, save_model
from primesvt.data import Splits, check_classes, load_data
from primesvt.data.digest import data_digest
from primesvt.data.splits import HELD_OUT_SEED
from primesvt.distributed import ProcessGroup, resolve_device
from primesvt.evaluation.batch_dependence import batch_note
from primesvt.evaluation.confidence import Accuracy, accuracy_of_outcomes, chance_note
from primesvt.evaluation.evaluator import Progress, outcomes
from primesvt.models import DataConfig, Provenance, SpikingViT, create_model
from primesvt.models.digest import model_digest
from primesvt.models.registry import provenance_of
from primesvt.models.state_dict import load_state
from primesvt.training.config import TrainRecipe
from primesvt.training.folder import Saver, TrainingFolder, check_free, resume
from primesvt.training.loop import BestWeights, TrainingLoop, computes_in_bf16, learning_rate_factor
from primesvt.training.record import (
    TrainProgress,
    TrainRecord,
    shared_note,
    versions,
)
from primesvt.training.snapshot import Snapshot, repeatable

__all__ = ["Fit", "black", "heads_of", "learning_rate_factor", "train"]


class Fit:
    """One training in progress: its loop, its data, and the best weights so far."""

    def __init__(
        self,
        model: SpikingViT,
        splits: Splits,
        recipe: TrainRecipe,
        config: DataConfig,
        processes: ProcessGroup,
        workers: int,
    ) -> None:
        assert splits.train is not None
        self.model, self.splits, self.recipe, self.config = model, splits, recipe, config
        self.processes, self.workers = processes, workers
        self.scored_at_once = max(recipe.batch_size, 128)
        self._start = None if recipe.start is None else _start(model, recipe.start)
        self._warnings = () if recipe.start is None else self._chance(splits.selection)
        for module in model.modules():
            if recipe.start is None and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.weight, recipe.norm_weight)
        self.loop = TrainingLoop(
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
        self.best = BestWeights()
        self._begin, self._pace = time.monotonic(), 0.0
        self._began_with: list[int] = [processes.size]

    @property
    def seconds(self) -> float:
        """Seconds of computing since the start, without the time in which it was stopped."""
        return time.monotonic() - self._begin

    def run(
        self,
        progress: Progress,
        *,
        save: Callable[[], None],
        after_step: Callable[[], None],
        stop_after: float | None = None,
    ) -> bool:
        """Train the epochs that are left; returns whether all are done.

        ``save`` is called where an epoch has ended, ``after_step`` within epochs. No epoch begins
        that would, by the time the last one took, end more than ``stop_after`` seconds from now.
        """
        begin = last = time.monotonic()
        for number in range(len(self.loop.losses), self.recipe.epochs):
            steps = self.loop.batches.steps - self.loop.step
            self.loop.epoch(progress, after_step)
            self._pace = steps * self.loop.batches.order.batch_size / (time.monotonic() - last)
            judged = self.loop.result
            self.best.offer(judged, self.score(self.splits.selection, judged).accuracy)
            save()
            now = time.monotonic()
            late = stop_after is not None and 2 * now - last - begin > stop_after
            if number + 1 < self.recipe.epochs and self.processes.broadcast(late):
                return False
            last = now
        return True

    def score(
        self, dataset: Dataset[tuple[Tensor, int]], model: nn.Module | None = None
    ) -> Accuracy:
        """Top-1 accuracy in evaluation mode; of the network itself when no other is given."""
        correct = outcomes(
            model or self.model,
            dataset,
            batch_size=self.scored_at_once,
            device=self.processes.device,
            workers=self.workers,
            processes=self.processes,
        )
        return accuracy_of_outcomes(correct)

    def context(self) -> dict[str, Any]:
        """Facts beside the recipe that the weights depend on: images, selection set, device."""
        assert self.splits.train is not None
        facts = {
            "training_images": len(cast(Sized, self.splits.train)),
            "selection_set": data_digest(self.splits.selection),
            "device": self.processes.device.type,
        }
        return facts if self._start is None else {**facts, "start": self._start}

    def progress(self) -> TrainProgress:
        """How many epochs are done, with their losses and accuracies."""
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
        """The state of the training, with which it can be resumed exactly."""
        loop, best = self.loop.snapshot(), self.best.snapshot()
        more = {"seconds": self.seconds, "began_with": self._began_with, "versions": versions()}
        facts = {**loop.facts, **best.facts, **more}
        return Snapshot(tensors={**loop.tensors, **best.tensors}, facts=facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot."""
        self.loop.restore(snapshot)
        self.best.restore(snapshot, self.processes.device)
        self._begin -= validated(float, snapshot.facts["seconds"])
        began_with = validated(list[int], snapshot.facts["began_with"])
        self._began_with = [*began_with, self.processes.size]

    def _chance(self, selection: Dataset[tuple[Tensor, int]]) -> tuple[str, ...]:
        """A warning where the weights that a training begins with are no better than guessing."""
        classes = self.model.config.num_classes
        found = chance_note(self.score(selection), classes, name="selection")
        return tuple(f"The model to begin with ({self.recipe.start}). {note}" for note in found)

    def notes(self) -> tuple[str, ...]:
        """Notes on the model to begin with, and on another number of processes since a stop."""
        counts = sorted(set(self._began_with))
        if len(counts) == 1:
            return self._warnings
        return (*self._warnings, f"Stopped and gone on with other numbers of processes: {counts}.")

    def _loss(self, output: Tensor | tuple[Tensor, ...], images: Tensor, targets: Tensor) -> Tensor:
        """Smoothed cross-entropy, averaged over the heads of a model that has two."""
        smoothing = self.recipe.label_smoothing
        heads = [head.float() for head in heads_of(output)]
        losses = [F.cross_entropy(head, targets, label_smoothing=smoothing) for head in heads]
        return torch.stack(losses).mean()


def _start(model: SpikingViT, folder: str) -> str:
    """Copy the weights of a saved model into another of the same sizes; returns their digest."""
    given = load(folder)
    load_state(model, given.state_dict(), source=f"start: the model in {folder}")
    return model_digest(given)


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


@overload
def train(
    recipe: TrainRecipe,
    *,
    out_dir: str | Path,
    device: str | torch.device = "cpu",
    workers: int = 0,
    save_every: float = 60.0,
    stop_after: None = None,
    command: str = "",
    progress: Progress | None = None,
) -> TrainRecord: ...


@overload
def train(
    recipe: TrainRecipe,
    *,
    out_dir: str | Path,
    device: str | torch.device = "cpu",
    workers: int = 0,
    save_every: float = 60.0,
    stop_after: float | None,
    command: str = "",
    progress: Progress | None = None,
) -> TrainRecord | TrainProgress: ...


def train(
    recipe: TrainRecipe,
    *,
    out_dir: str | Path,
    device: str | torch.device = "cpu",
    workers: int = 0,
    save_every: float = 60.0,
    stop_after: float | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> TrainRecord | TrainProgress:
    """Train the recipe's model and write ``OUT/model/`` and ``OUT/record.json``.

    The selection images are held out; the weights of the epoch that is best on them are kept (the
    later one of equals). The test images are read once, at the end. The folder is made once
    model and data are checked; ``record.json`` is written last: a folder that has it is complete.
    A training that was stopped goes on, by the same call, from its last snapshot, which is written
    at every epoch's end and every minute; on one thread it ends with the weights that it would have
    had. One that has ended is returned. Started by ``torchrun`` or ``accelerate launch``, processes
    share every batch, and one writes.

    Args:
        recipe: what to train on what, and how.
        out_dir: a new or empty folder, or one of a training of the same recipe.
        device: where to compute; only the CPU with one thread repeats a run bitwise.
        workers: processes that decode images, where those do not fit into memory.
        save_every: seconds between snapshots within an epoch; more where saving takes more than a
            twentieth of them.
        stop_after: seconds after which no further epoch is begun that would end later; what has
            been reached is returned, and the same call goes on from there.
        command: the command line to put on record.
        progress: called as ``progress("training", step, steps)``.

    Raises:
        ValueError: folder not writable or used, unknown model or option, data that do not fit,
            a loss that is not finite, a batch that the processes cannot share evenly.
    """
    check_counts(workers=workers)
    ProcessGroup.take_gpu()
    processes = ProcessGroup.start(resolve_device(device))
    out = Path(out_dir)
    processes.on_main(lambda: check_free(out, task="a training"))
    with repeatable(recipe.seed, recipe.threads, processes.device):
        fit = _prepared(recipe, processes, workers)
        folder = TrainingFolder(out, recipe=recipe, context=fit.context())
        with processes.locked(out):
            processes.on_main(lambda: check_free(out, task="a training"))
            return _in_folder(fit, folder, command, progress, save_every, stop_after)


def _in_folder(
    fit: Fit,
    folder: TrainingFolder,
    command: str,
    progress: Progress | None,
    save_every: float,
    stop_after: float | None,
) -> TrainRecord | TrainProgress:
    """Start, resume, or return what is finished.

    Nothing is written before what lies in the folder was compared with what is asked.
    """
    on_main = fit.processes.on_main
    record = on_main(folder.finished_record)
    if record is not None:
        on_main(folder.tidy)
        try:
            return TrainRecord.from_dict(record)
        except ValueError as error:
            raise ValueError(
                f"{folder.path / 'record.json'} is damaged: {error}; delete the folder to start"
                " anew"
            ) from error
    stopped = on_main(folder.stopped)
    if stopped is None:
        on_main(folder.create)
    else:
        resume(fit.restore, stopped, folder)

    def save() -> None:
        snapshot, state = fit.snapshot(), fit.progress().to_dict()
        on_main(lambda: folder.save(snapshot, state))

    saver = Saver(save, save_every, fit.processes)
    done = fit.run(
        progress or (lambda stage, done, total: None),
        save=saver.now,
        after_step=saver.if_due,
        stop_after=stop_after,
    )
    return _finished(fit, folder, command) if done else fit.progress()


def _prepared(recipe: TrainRecipe, processes: ProcessGroup, workers: int) -> Fit:
    """Make the model, open the data, and check both."""
    try:
        model = create_model(recipe.model, **recipe.model_options).to(processes.device)
    except TypeError as error:
        raise ValueError(f"model_options: {error}") from error
    config = provenance_of(model).data
    splits = load_data(
        recipe.data,
        data_config=config,
        time_steps=model.time_steps,
        seed=recipe.seed,
        held_out=True,
    )
    if splits.train is None:
        raise ValueError(f"{splits.name} has no training {splits.unit}; add a train part")
    check_classes(splits, model.config.num_classes)
    processes.share(recipe.batch_size)
    return Fit(model, splits, recipe, config, processes, workers)


def _finished(fit: Fit, folder: TrainingFolder, command: str) -> TrainRecord:
    """Write the best weights, measure them, and last write the record."""
    on_main, splits = fit.processes.on_main, fit.splits
    fit.best.give(fit.model)
    fit.model.provenance = Provenance(data=fit.config, held_out=True)
    on_main(lambda: save_model(fit.model, folder.model))
    sets = {"selection": splits.selection, "test": splits.test}
    batches = batch_note(fit.model, fit.scored_at_once, **sets)
    selection = fit.score(splits.selection)
    test = None if splits.test is None else fit.score(splits.test)
    name = "selection" if test is None else "test"
    chance = chance_note(test or selection, fit.model.config.num_classes, name=name)
    record = TrainRecord(
        command=command,
        recipe=fit.recipe.to_dict(),
        data=splits.description(),
        data_config=dataclasses.asdict(fit.config),
        held_out_seed=HELD_OUT_SEED,
        versions=versions(),
        parameters=sum(parameter.numel() for parameter in fit.model.parameters()),
        kept_epoch=fit.best.epoch,
        selection=selection,
        test=test,
        loss=tuple(round(loss, 6) for loss in fit.loop.losses),
        selection_accuracy=tuple(fit.best.accuracies),
        notes=(*shared_note(fit.processes.size), *fit.notes(), *batches, *chance),
        context=fit.context(),
        seconds=round(fit.seconds, 1),
    )
    on_main(lambda: folder.finish(record.to_dict()))
    return record

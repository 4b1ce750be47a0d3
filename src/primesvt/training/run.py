"""Train a model from a recipe: seeded, on training images only, written out whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import overload

import torch

from primesvt.checkpoint.folder import save_model
from primesvt.data import check_classes, load_data
from primesvt.data.splits import HELD_OUT_SEED
from primesvt.distributed import Processes
from primesvt.evaluation.batch_dependence import batch_note
from primesvt.evaluation.evaluator import Progress, resolve_device
from primesvt.models import Provenance, SpikingViT, create_model, model_entry
from primesvt.training.config import TrainRecipe
from primesvt.training.fit import Fit
from primesvt.training.folder import Saver, TrainingFolder, check_free
from primesvt.training.randomness import repeatable
from primesvt.training.record import TrainProgress, TrainRecord, shared_note, versions

__all__ = ["train"]


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
    Processes.take_gpu()
    processes = Processes.start(resolve_device(device))
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
    """Begin, go on, or give what is finished; compared before anything is written there."""
    on_main = fit.processes.on_main
    record = on_main(folder.finished_record)
    if record is not None:
        return TrainRecord.from_dict(record)
    stopped = on_main(folder.stopped)
    if stopped is None:
        on_main(folder.create)
    else:
        fit.restore(stopped)
    saver = Saver(lambda: _save(fit, folder), save_every, fit.processes)
    told = progress or (lambda stage, done, total: None)
    done = fit.run(told, save=saver.now, after_step=saver.if_due, stop_after=stop_after)
    return _finished(fit, folder, command) if done else fit.progress()


def _save(fit: Fit, folder: TrainingFolder) -> None:
    snapshot, progress = fit.snapshot(), fit.progress().to_dict()
    fit.processes.on_main(lambda: folder.save(snapshot, progress))


def _prepared(recipe: TrainRecipe, processes: Processes, workers: int) -> Fit:
    """Model, data and all that can be wrong with them found out."""
    model = _fresh_model(recipe).to(processes.device)
    config = model_entry(recipe.model).data
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
    """Write the best weights, and last the record."""
    on_main = fit.processes.on_main
    fit.best.give(fit.model)
    fit.model.provenance = Provenance(data=fit.config, held_out=True)
    on_main(lambda: save_model(fit.model, folder.model))
    record = _record(fit, command)
    on_main(lambda: folder.finish(record.to_dict()))
    return record


def _fresh_model(recipe: TrainRecipe) -> SpikingViT:
    try:
        return create_model(recipe.model, **recipe.model_options)
    except TypeError as error:
        raise ValueError(f"model_options: {error}") from error


def _record(fit: Fit, command: str) -> TrainRecord:
    """Score the kept weights on selection and, this once, on test."""
    splits = fit.splits
    return TrainRecord(
        command=command,
        recipe=fit.recipe.to_dict(),
        data=splits.description(),
        data_config=dataclasses.asdict(fit.config),
        held_out_seed=HELD_OUT_SEED,
        versions=versions(),
        parameters=sum(parameter.numel() for parameter in fit.model.parameters()),
        kept_epoch=fit.best.epoch,
        selection=fit.score(splits.selection),
        test=None if splits.test is None else fit.score(splits.test),
        loss=tuple(round(loss, 6) for loss in fit.loop.losses),
        selection_accuracy=tuple(fit.best.accuracies),
        notes=(*shared_note(fit.processes.size), *fit.notes(), *_batches(fit)),
        context=fit.context(),
        seconds=round(fit.seconds, 1),
    )


def _batches(fit: Fit) -> tuple[str, ...]:
    splits = fit.splits
    return batch_note(fit.model, fit.scored_at_once, selection=splits.selection, test=splits.test)

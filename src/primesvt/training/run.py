"""Train a model from a recipe: seeded, on training images only, written out whole or not at all."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch

from primesvt._files import check_writable, write_json
from primesvt.artifact import save_model
from primesvt.batches import batch_note
from primesvt.data import check_classes, load_data
from primesvt.data.splits import HELD_OUT_SEED
from primesvt.evaluation import Progress, resolve_device
from primesvt.models import Provenance, SpikingViT, create_model, model_entry
from primesvt.processes import Processes
from primesvt.training.fit import Fit
from primesvt.training.randomness import repeatable
from primesvt.training.recipe import TrainRecipe
from primesvt.training.record import TrainRecord, shared_note, versions

__all__ = ["train"]


def train(
    recipe: TrainRecipe,
    *,
    out_dir: str | Path,
    device: str | torch.device = "cpu",
    workers: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> TrainRecord:
    """Train the recipe's model and write ``OUT/model/`` and ``OUT/record.json``.

    The selection images are held out; the weights of the epoch that is best on them are kept (the
    later one of equals). The test images are read once, at the end. The folder is made once
    model and data are checked; ``record.json`` is written last: a folder that has it is complete.
    Started by ``torchrun`` or ``accelerate launch``, processes share every batch, and one writes.

    Args:
        recipe: what to train on what, and how.
        out_dir: a folder without a record of an earlier training.
        device: where to compute; only the CPU with one thread repeats a run bitwise.
        workers: processes that decode images.
        command: the command line to put on record.
        progress: called as ``progress("training", step, steps)``.

    Raises:
        ValueError: folder not writable or used, unknown model or option, data that do not fit,
            a loss that is not finite, a batch that the processes cannot share evenly.
    """
    begin = time.monotonic()
    Processes.take_gpu()
    processes = Processes.start(resolve_device(device))
    folder = processes.on_main(lambda: _usable(Path(out_dir)))
    with repeatable(recipe.seed, recipe.threads, processes.device):
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
        fit = Fit(model, splits, recipe, config, processes, workers)
        processes.on_main(lambda: check_writable(folder))
        fit.run(progress or (lambda stage, done, total: None))
        fit.best.give(model)
        model.provenance = Provenance(data=config, held_out=True)
        processes.on_main(lambda: save_model(model, folder / "model"))
        record = _record(fit, command=command, begin=begin)
    processes.on_main(lambda: write_json(folder / "record.json", record.to_dict()))
    return record


def _fresh_model(recipe: TrainRecipe) -> SpikingViT:
    try:
        return create_model(recipe.model, **recipe.model_options)
    except TypeError as error:
        raise ValueError(f"model_options: {error}") from error


def _record(fit: Fit, *, command: str, begin: float) -> TrainRecord:
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
        notes=(*shared_note(fit.processes.size), *_batches(fit)),
        seconds=round(time.monotonic() - begin, 1),
    )


def _batches(fit: Fit) -> tuple[str, ...]:
    splits = fit.splits
    return batch_note(fit.model, fit.scored_at_once, selection=splits.selection, test=splits.test)


def _usable(folder: Path) -> Path:
    """Refuse a folder that is used or cannot be made; nothing is made yet.

    What a killed training may leave, ``model/`` alone, is no use of a folder.
    """
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir():
        raise ValueError(
            f"cannot write to folder {str(folder)!r}: {str(above)!r} is a file; "
            "choose a folder that you may write to"
        )
    check_writable(above)
    if above == folder and any(entry.name != "model" for entry in folder.iterdir()):
        raise ValueError(f"{folder} already holds a run; choose another folder or delete this one")
    return folder

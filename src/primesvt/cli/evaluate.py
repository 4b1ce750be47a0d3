"""``primesvt evaluate``: measure the accuracy of a model."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from primesvt._format import megabytes
from primesvt._guard import check_counts
from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import table, whole
from primesvt.config import parse_overrides

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn
    from torch.utils.data import Dataset

    from primesvt.checkpoint.load import OpenedModel
    from primesvt.data import Splits

__all__ = ["Evaluate"]

FOLDED = (
    "Batch norms were folded: sums are rounded elsewhere than in the model itself, which may flip"
    " a spike and an answer now and then."
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model's top-1 accuracy, with its confidence interval.

    examples:
      primesvt evaluate sdt_v2_digits
      primesvt evaluate runs/sdt_v2_digits --set selection
      primesvt evaluate 15M.pth --data imagenet --time-steps 4 --device cuda
      torchrun --nproc-per-node 4 -m primesvt evaluate RUN --device cuda
    """

    model: flags.Model
    data: flags.Data = None
    set: Literal["test", "selection"] = "test"
    """Images to measure on; the test set is best left alone until all choices are made."""
    time_steps: flags.TimeSteps = None
    family: flags.Family = None
    override: flags.Override = ()
    container: flags.Container = None
    key_map: flags.KeyMap = None
    device: flags.Device = "cpu"
    batch_size: flags.BatchSize = 64
    workers: flags.Workers = 0
    seed: flags.Seed = None
    folded: bool = False
    """Measure a quicker copy, as it would be deployed: batch norms folded, channels last (CPU)."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Measure and print one row."""
        from primesvt.checkpoint.load import open_model, own_data, splits_for
        from primesvt.distributed import resolve_device
        from primesvt.evaluation.batch_dependence import batch_note
        from primesvt.evaluation.confidence import accuracy_of, chance_note
        from primesvt.models.forward import check_no_nan

        check_counts(batch_size=self.batch_size, workers=self.workers, seed=self.seed)
        if self.folded and self.device != "cpu":
            raise ValueError(
                f"--folded measures on the CPU, and --device is {self.device}; leave one of them"
                " out"
            )
        resolve_device(self.device)
        opened = open_model(
            self.model,
            time_steps=self.time_steps,
            family=self.family,
            container=self.container,
            key_map=self.key_map,
            overrides=parse_overrides(self.override),
        )
        check_no_nan(opened.model)
        own = own_data(self.model)
        splits = splits_for(opened.model, self.data, own=own, seed=self.seed)
        dataset = splits.test if self.set == "test" else splits.selection
        if dataset is None:
            raise ValueError(f"{splits.name} has no test set; measure with --set selection")
        opened, dataset, notes = self._settled(opened, splits, dataset, console)
        console.loaded(opened.loaded)
        found = self._measured(opened, dataset, console)
        notes += batch_note(opened.model, self.batch_size, **{self.set: dataset})
        measured = accuracy_of(found["accuracy"], found["images"])
        notes += chance_note(measured, opened.num_classes, name=self.set)
        if self.folded:
            notes.append(FOLDED)
        facts = {
            "model": self.model,
            "loaded": opened.loaded and opened.loaded.to_dict(),
            "guessed_settings": dict(opened.loaded.assumed) if opened.loaded else {},
            "data": splits.description(),
            "data_spec": self.data or (own and own.spec),
            "notes": notes,
        }
        console.result(facts | found)
        images = f"{self.set} set of {found['images']:,} {splits.unit}"
        console.line(f"{self.model} on {splits.name}, {images}")
        if own is not None and self.data is None and own.spec != "digits":
            console.sentence(f"Data: {own.spec}, as {own.told} says.")
        if splits.form:
            console.line(f"Event frames: {splits.form}.")
        for remark in splits.remarks:
            console.sentence(f"Data: {remark}.")
        for note in notes:
            console.sentence(note)
        console.say(_table(found))
        return 0

    def _settled(
        self, opened: OpenedModel, splits: Splits, dataset: Dataset[Any], console: Console
    ) -> tuple[OpenedModel, Dataset[Any], list[str]]:
        """Try guessed settings on images that are then not measured on; with notes on it."""
        import dataclasses

        from primesvt.distributed import ProcessGroup, resolve_device
        from primesvt.evaluation.settings import find_settings, settings_note, tried_on

        ProcessGroup.take_gpu()
        processes = ProcessGroup.start(resolve_device(self.device))
        seed = self.seed or 0
        with console.progress() as progress:
            model = find_settings(
                opened.model,
                splits,
                seed=seed,
                batch_size=self.batch_size,
                device=processes.device,
                processes=processes,
                progress=progress,
            )
        notes = list(settings_note(model))
        if model is not opened.model and self.set == "selection":
            dataset, tried = tried_on(splits, seed=seed)
            count = len(cast(Sized, tried))
            notes.append(f"The {count:,} selection images of that are left out here.")
        return dataclasses.replace(opened, model=model), dataset, notes

    def _measured(self, opened: OpenedModel, dataset: Any, console: Console) -> dict[str, Any]:
        """Measure the accuracy of a model on a data set, with its sizes, as plain values."""
        from primesvt.distributed import ProcessGroup, resolve_device
        from primesvt.evaluation.confidence import wilson_interval
        from primesvt.evaluation.evaluator import outcomes
        from primesvt.profiling.memory import buffer_bytes, parameter_bytes, parameter_count

        ProcessGroup.take_gpu()
        processes = ProcessGroup.start(resolve_device(self.device))
        model: nn.Module = opened.model
        if self.folded:  # a quicker copy, made for batches of the size that is asked for
            import torch

            from primesvt.exporting.deploy import quick

            count = max(2, min(self.batch_size, len(dataset)))
            images = [dataset[number % len(dataset)][0] for number in range(count)]
            model = quick(opened.model, torch.stack(images))
        with console.progress() as progress:
            correct = outcomes(
                model,
                dataset,
                batch_size=self.batch_size,
                device=processes.device,
                workers=self.workers,
                progress=progress,
                processes=processes,
            )
        return {
            "set": self.set,
            "images": len(correct),
            "batch_size": self.batch_size,
            "accuracy": float(correct.mean()),
            "interval": list(wilson_interval(int(correct.sum()), len(correct))),
            "parameters": parameter_count(opened.model),
            "parameter_bytes": parameter_bytes(opened.model),
            "buffer_bytes": buffer_bytes(opened.model),
        }


def _table(found: dict[str, Any]) -> Table:
    """What was measured as a table of one row."""
    low, high = found["interval"]
    cells = (
        f"{found['accuracy']:.2%}",
        f"{low:.2%} .. {high:.2%}",
        whole(found["parameters"]),
        megabytes(found["parameter_bytes"]),
        megabytes(found["buffer_bytes"]),
    )
    columns = ["Top-1", "95% interval", "Parameters", "Parameter memory", "Buffers"]
    return table(columns, [cells], right=range(5))

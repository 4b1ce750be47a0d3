"""``primesvt evaluate``: how good a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.overrides import parse_overrides
from primesvt.cli.tables import table, whole
from primesvt.text import megabytes

__all__ = ["Evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model's top-1 accuracy, with its confidence interval.

    examples:
      primesvt evaluate sdt_v2_digits
      primesvt evaluate runs/sdt_v2_digits --set selection
      primesvt evaluate 15M.pth --data imagenet --time-steps 4 --device cuda
    """

    model: flags.Model
    data: flags.Data = "digits"
    set: Literal["test", "selection"] = "test"
    """Images to measure on; the test set is best left alone until all choices are made."""
    time_steps: flags.TimeSteps = None
    family: flags.Family = None
    override: flags.Override = ()
    device: flags.Device = "cpu"
    batch_size: flags.BatchSize = 64
    workers: flags.Workers = 0
    seed: flags.Seed = 0
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Measure and print one row."""
        from primesvt.batches import batch_note
        from primesvt.checkpoint import open_model
        from primesvt.data import check_classes, load_data
        from primesvt.evaluation import outcomes
        from primesvt.memory import buffer_bytes, parameter_bytes, parameter_count
        from primesvt.statistics import wilson_interval

        opened = open_model(
            self.model,
            time_steps=self.time_steps,
            family=self.family,
            overrides=parse_overrides(self.override),
        )
        console.loaded(opened.loaded)
        splits = load_data(
            self.data,
            data_config=opened.data,
            time_steps=opened.model.time_steps,
            seed=self.seed,
            held_out=opened.held_out,
        )
        check_classes(splits, opened.num_classes)
        dataset = splits.test if self.set == "test" else splits.selection
        if dataset is None:
            raise ValueError(f"{splits.name} has no test set; measure with --set selection")
        with console.progress() as progress:
            correct = outcomes(
                opened.model,
                dataset,
                batch_size=self.batch_size,
                device=self.device,
                workers=self.workers,
                progress=progress,
            )
        notes = batch_note(opened.model, self.batch_size, **{self.set: dataset})
        low, high = wilson_interval(int(correct.sum()), len(correct))
        parameters = parameter_count(opened.model)
        console.result(
            {
                "model": self.model,
                "loaded": opened.loaded and opened.loaded.to_dict(),
                "set": self.set,
                "images": len(correct),
                "batch_size": self.batch_size,
                "notes": notes,
                "accuracy": float(correct.mean()),
                "interval": [low, high],
                "parameters": parameters,
                "parameter_bytes": parameter_bytes(opened.model),
                "buffer_bytes": buffer_bytes(opened.model),
            }
        )
        console.line(
            f"{self.model} on {splits.name}, {self.set} set of {len(correct):,} {splits.unit}"
        )
        if splits.form:
            console.line(f"Event frames: {splits.form}.")
        for note in notes:
            console.sentence(note)
        console.say(
            table(
                ["Top-1", "95% interval", "Parameters", "Parameter memory", "Buffers"],
                [
                    (
                        f"{correct.mean():.2%}",
                        f"{low:.2%} .. {high:.2%}",
                        whole(parameters),
                        megabytes(parameter_bytes(opened.model)),
                        megabytes(buffer_bytes(opened.model)),
                    )
                ],
                right=range(5),
            )
        )
        return 0

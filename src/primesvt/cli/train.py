"""``primesvt train``: a model from a recipe file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console, duration, seconds_of
from primesvt.cli.tables import table, whole
from primesvt.config import unset

if TYPE_CHECKING:
    from primesvt.training import TrainProgress

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model from a recipe file.

    what happens:
      The images held out for selection are never trained on; the test images are
      read once, at the end. OUT gets the model and the record of how it was made.
      A training that was stopped or killed goes on by the same command, from the
      snapshot that is written there after every epoch and every minute.

    examples:
      primesvt train --recipe recipes/digits.yaml
      primesvt train --recipe recipes/cifar10.yaml --data FOLDER --device cuda
      primesvt train --recipe recipes/cifar10.yaml --data FOLDER --stop-after 170min
    """

    recipe: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Recipe file (YAML): model, data, epochs, learning rate, augmentation, seed."""
    data: Annotated[str | None, unset("DATA")] = None
    """'digits', or data as `primesvt prune` takes them, in place of the recipe's."""
    out: flags.Out = None
    """Folder of the result; runs/NAME-OF-THE-RECIPE-trained when not given."""
    device: flags.Device = "cpu"
    batch_size: Annotated[int | None, unset("N")] = None
    """Images per training step, in place of the recipe's."""
    workers: flags.Workers = 0
    seed: Annotated[int | None, unset("N")] = None
    """Seed of weights, order and augmentation, in place of the recipe's."""
    stop_after: Annotated[str | None, unset("TIME")] = None
    """Begin no epoch that would end later than this, such as 170min or 3h."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Train, then say how good the model is and where it lies."""
        from primesvt.training import TrainProgress, read_train_recipe, train

        recipe = read_train_recipe(self.recipe)
        recipe = recipe.changed(data=self.data, batch_size=self.batch_size, seed=self.seed)
        out = self.out or Path("runs") / f"{self.recipe.stem}-trained"
        command = " ".join(["primesvt", *sys.argv[1:]])
        with console.progress() as progress:
            record = train(
                recipe,
                out_dir=out,
                device=self.device,
                workers=self.workers,
                stop_after=None if self.stop_after is None else seconds_of(self.stop_after),
                command=command,
                progress=progress,
            )
        if isinstance(record, TrainProgress):
            return _stopped(record, out, console)
        scores = {"selection": record.selection, "test": record.test}
        rows = [
            (name, f"{s.accuracy:.2%}", f"{s.low:.2%} .. {s.high:.2%}", whole(s.images))
            for name, s in scores.items()
            if s is not None
        ]
        console.result({"out": str(out), **record.to_dict()})
        console.line(f"{recipe.model}: {record.parameters:,} parameters, {record.data}")
        console.say(table(["Set", "Top-1", "95% interval", "Images"], rows, right=[1, 2, 3]))
        for note in record.notes:
            console.sentence(note)
        console.line(f"Trained in {duration(record.seconds)}; best at epoch {record.kept_epoch}.")
        console.line(f"The model: {out / 'model'}")
        return 0


def _stopped(progress: TrainProgress, out: Path, console: Console) -> int:
    """Print how far a training has come that was stopped and can go on."""
    console.result({"out": str(out), **progress.to_dict()})
    console.line(
        f"Stopped after epoch {progress.epochs_done} of {progress.epochs}, trained for "
        f"{duration(progress.seconds)} in all; {progress.selection_accuracy[-1]:.2%} of the "
        "selection images are right."
    )
    console.line("The same command goes on from there.")
    return 0

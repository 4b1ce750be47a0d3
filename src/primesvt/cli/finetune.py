"""``primesvt finetune``: train what a run has pruned."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console, duration
from primesvt.cli.tables import table
from primesvt.config import unset

if TYPE_CHECKING:
    from rich.table import Table

    from primesvt.training.record import FinetuneRecord

__all__ = ["Finetune"]

# Of these flags the recipe has the fields.
FIELDS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup_epochs",
    "distillation",
    "temperature",
    "feature_weight",
    "precision",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train a pruned model for a short time, with the unpruned one as teacher.

    what happens:
      Learns the labels of the training images, and what the unpruned model makes
      of them. The best epoch on the selection images is kept, and the weights
      before fine-tuning compete; the test images are read once, at the end. Stop
      it whenever you like: the same command goes on.

    what is not asked for:
      Follows the training of the unpruned model where its record is known: a
      tenth of its epochs, a tenth of its learning rate, its batches and changes
      of the images (docs/finetuning.md).

    several GPUs or machines:
      torchrun --nproc-per-node 4 -m primesvt finetune RUN --device cuda
      The processes share every batch; one of them writes.

    examples:
      primesvt finetune runs/sdt_v2_digits
      primesvt finetune runs/sdt_v2_digits --epochs 20 --learning-rate 0.002
      primesvt finetune runs/sdt_v2_digits --distillation 0 --out runs/labels-only
      primesvt finetune runs/15M --device cuda --workers 8
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", name="run")]
    """Folder of a finished `primesvt prune`."""
    out: flags.Out = None
    """Folder of the result; RUN/finetuned when not given."""
    recipe: Annotated[Path | None, unset("FILE")] = None
    """Recipe file (YAML) of a fine-tuning; the flags below stand in place of its fields."""
    data: Annotated[str | None, unset("DATA")] = None
    """Data in place of the run's, such as the same folder in another place."""
    teacher: Annotated[str | None, unset("MODEL")] = None
    """The unpruned model, in place of what the run names."""
    epochs: Annotated[int | None, unset("N")] = None
    """Passes over the training images."""
    batch_size: Annotated[int | None, unset("N")] = None
    """Images per step, over all processes."""
    learning_rate: Annotated[float | None, unset("RATE")] = None
    """Peak of the learning rate; it then falls to zero as a cosine."""
    warmup_epochs: Annotated[float | None, unset("N")] = None
    """Epochs in which the learning rate rises; a tenth of all when not given."""
    distillation: Annotated[float | None, unset("FRACTION")] = None
    """Share of the loss that is the distance from the unpruned model's answers (0.9)."""
    temperature: Annotated[float | None, unset("T")] = None
    """Softens both answers before they are compared (4)."""
    feature_weight: Annotated[float | None, unset("WEIGHT")] = None
    """Weight of the distance from the unpruned model's block outputs (0)."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, unset("{auto,fp32,bf16}")] = None
    """auto: bfloat16 autocast on a GPU that has it, else single precision."""
    seed: Annotated[int | None, unset("N")] = None
    """Seed of the order of images and of their changes (0)."""
    device: flags.Device = "cpu"
    workers: flags.Workers = 0
    save_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Time between saved states, which a stopped fine-tuning goes on from."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Fine-tune, then say what it gave and where it lies."""
        from primesvt.training.config import read_content
        from primesvt.training.finetuning import finetune

        content = {} if self.recipe is None else read_content(self.recipe)
        flags_given = {name: getattr(self, name) for name in FIELDS}
        content |= {name: value for name, value in flags_given.items() if value is not None}
        out = self.out or self.run_folder / "finetuned"
        with console.progress() as progress:
            result = finetune(
                self.run_folder,
                teacher=self.teacher,
                data=self.data,
                recipe=content,
                out=out,
                device=self.device,
                workers=self.workers,
                save_every=self.save_every,
                command=" ".join(["primesvt", *sys.argv[1:]]),
                progress=progress,
            )
        record = result.record
        console.result({"out": str(out), **record.to_dict()})
        console.line(record.data)
        console.say(_table(record))
        for note in record.notes:
            console.sentence(note)
        epochs = f"{len(record.loss)} epoch{'s' * (len(record.loss) > 1)}"
        better = (
            f"epoch {record.kept_epoch} is the best"
            if record.kept_epoch
            else "none is better on the selection images, so the pruned weights stay"
        )
        console.sentence(f"Fine-tuned for {epochs} in {duration(record.seconds)}; {better}.")
        console.line(f"The model:  primesvt.load({str(out)!r})")
        if out.resolve() == (self.run_folder / "finetuned").resolve():  # where the page reads it
            self._renew_report(console)
        return 0

    def _renew_report(self, console: Console) -> None:
        """Write the run's report again, with what fine-tuning reached, in one process."""
        if console.rank:
            return
        from primesvt._files import FolderInUse, folder_lock
        from primesvt.report import write_report

        try:
            with folder_lock(self.run_folder):
                console.line(f"The report: {write_report(self.run_folder)}")
        except FolderInUse as error:
            again = f"`primesvt report {self.run_folder}` does it"
            console.sentence(f"The report was not made anew: {error}; {again}.")


def _table(record: FinetuneRecord) -> Table:
    """Accuracies of the three networks on both sets."""
    networks = {
        "Unpruned": record.unpruned,
        "Pruned": record.before,
        "Fine-tuned": record.after,
    }
    shown = {name: scores for name, scores in networks.items() if scores is not None}
    rows = []
    for part in ("test", "selection"):
        found = [getattr(scores, part) for scores in shown.values()]
        if None not in found:
            shares = [f"{each.accuracy:.2%}" for each in found]
            rows.append([f"Top-1, {part} set of {found[0].images:,}", *shares])
            rows.append(["  95% interval", *(f"{100 * a.low:.1f} .. {a.high:.1%}" for a in found)])
    return table(["", *shown], rows, right=range(1, 4))

"""``primesvt export``: a model as a file for another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from primesvt._format import megabytes
from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import table
from primesvt.config import unset
from primesvt.registry import EXPORT_FORMATS

if TYPE_CHECKING:
    from rich.table import Table

    from primesvt.exporting import ExportResult, Rounded

__all__ = ["Export"]

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[EXPORT_FORMATS.names()]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model for another runtime, and check that it computes the same.

    what is written:
      onnx           one ONNX file (opset 18) for onnxruntime and device tools
      torch-export   one .pt2 file for torch.export.load
      hub            a folder as the Hugging Face Hub has them, with a model card
      Batch norms are folded and neurons written out; the number of images is free,
      their size and the time steps are fixed.

    what is checked:
      The file and the model compute the same images, of its data's selection set.
      Too few equal predictions are an error, and the file is deleted.

    examples:
      primesvt export runs/sdt_v2_digits
      primesvt export runs/sdt_v2_digits --weight-bits 8 --agreement 0.98
      primesvt export runs/sdt_v2_digits --format hub --push NAME/sdt-v2-digits
      primesvt export 15M.pth --data imagenet --out 15M.onnx
      primesvt export runs/mine --into mynet.model:MyNet --format torch-export
    """

    model: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN", help="Run folder; or a saved folder, registry name or checkpoint."
        ),
    ]
    format: Format = "onnx"
    """What to write."""
    weight_bits: Annotated[Literal[8] | None, unset("8")] = None
    """Round weights to 8 bits (onnx), all but those of the first layers if that flips too much."""
    agreement: Annotated[float, tyro.conf.arg(metavar="FRACTION")] = 0.99
    """Fraction of images whose prediction must stay the same."""
    out: Annotated[Path | None, unset("PATH")] = None
    """File, or folder of the Hub layout; in RUN/export when not given."""
    data: Annotated[str | None, unset("DATA")] = None
    """Images to compare on, as for `primesvt prune`; the model's own when not given."""
    images: Annotated[int, tyro.conf.arg(metavar="N")] = 256
    """Compare on so many of them, at most."""
    batch_size: flags.BatchSize = 16
    into: flags.Into = None
    input_size: flags.InputSize = None
    push: Annotated[str | None, unset("REPOSITORY")] = None
    """Upload the folder to this repository of the Hugging Face Hub."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Write, compare, and say how well both agree and how large the file is."""
        from primesvt.exporting import export

        source, out, example = self._source()
        with console.progress() as progress:
            made = export(
                source,
                out,
                format=self.format,
                weight_bits=self.weight_bits,
                agreement=self.agreement,
                data=self.data,
                example_input=example,
                images=self.images,
                batch_size=self.batch_size,
                push=self.push,
                progress=progress,
            )
        console.result(made.to_dict())
        opset = f" (opset {made.opset})" if made.opset else ""
        console.sentence(f"{made.format}{opset}: {made.input} to {made.output}")
        console.sentence(f"Compared with the model on {made.agreement.source}:")
        console.say(*_tables(made))
        for note in made.notes:
            console.sentence(note)
        if made.rounded is not None:
            console.sentence(_rounded(made.rounded))
        console.line(f"The {'model' if made.path.is_dir() else 'file'}: {made.path}")
        if made.url:
            console.line(f"Pushed to: {made.url}")
        return 0

    def _source(self) -> tuple[Any, Path | None, Any]:
        """The network, where its file goes, and inputs to compare on where it is the user's own."""
        if self.into is None:
            if self.input_size is not None:
                raise ValueError("--input-size goes with --into, a class of your own")
            return self.model, self.out, None
        from primesvt.checkpoint.own_model import open_own_model
        from primesvt.exporting.formats import find_format

        own = open_own_model(self.into, self.model, self.input_size)
        out = self.out
        if out is None and Path(self.model).is_dir():
            out = Path(self.model) / "export" / find_format(self.format).file_name
        return own.model, out, own.inputs[0] if self.data is None else None


def _rounded(found: Rounded) -> str:
    """How many layers have weights of fewer bits, and why the others have not: a sentence."""
    parts = [f"Weights: {found.layers} of {found.total} layers in {found.bits} bits"]
    if found.front:
        parts.append(f"the first {found.front} in float32, so that predictions agree")
    if small := found.total - found.layers - found.front:
        parts.append(f"{small} in float32, as they are too small to gain by it")
    return "; ".join(parts) + "."


def _tables(made: ExportResult) -> tuple[Table, Table]:
    """How well the model and the file agree, and the size of the weights after every step."""
    found = made.agreement
    rows = [
        ("Same prediction", f"{found.predictions:.2%}", f"{made.level:.2%} asked"),
        (
            "Mean difference of logits",
            f"{found.mean_difference:.2g}",
            f"largest {found.largest_difference:.2g}; logits about {found.scale:.2g}",
        ),
    ]
    if found.least is not None:
        name, share = found.least
        worst = f"fewest {_share(share)}, {name}" if share < 1 else "in every layer"
        rows.append(("Same spikes", _share(found.equal_spikes or 0.0), worst))
    if found.accuracy is not None:
        before, after = found.accuracy
        rows.append(("Top-1 on them", f"{after:.2%}", f"{before:.2%} before"))
    agreement = table(["On the same samples", "", ""], rows, right=[1], wrap=[2])
    first = made.sizes[0].weights
    steps = [
        (
            size.step,
            megabytes(size.weights),
            f"{size.weights / first - 1:+.1%}" if number else "",
            "" if size.file is None else megabytes(size.file),
        )
        for number, size in enumerate(made.sizes)
    ]
    return agreement, table(["", "Weights", "Change", "File"], steps, right=[1, 2, 3])


def _share(value: float) -> str:
    """A share in percent, rounded so that it is 100% only if it is all."""
    return "100%" if value == 1 else f"{min(value, 0.999999):.4%}"

"""``primesvt.export``: a network as a file for another runtime, compared before it stands there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from primesvt._files import file_lock, write_bytes, write_json
from primesvt.exporting.agreement import Comparison, Progress
from primesvt.exporting.deploy import deploy
from primesvt.exporting.onnx import onnx_payload, program_payload
from primesvt.exporting.onnx.model import check_onnx
from primesvt.exporting.result import ExportResult, Size, about, input_name, input_shape
from primesvt.exporting.source import ExportSource, open_origin, samples_of
from primesvt.profiling.memory import parameter_bytes

__all__ = ["ExportSettings", "Format", "export"]


Format = Literal["onnx", "torch-export", "hub"]
NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2", "hub": "hub"}


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The checked settings of an export; ``ValueError`` for one that is not allowed.

    Attributes:
        format: ``onnx``, ``torch-export`` or ``hub``.
        weight_bits: 8 for weights in eight bits; ONNX only.
        agreement: share of samples whose prediction must stay the same.
        images: samples to compare on, at most.
        batch_size: of the comparison.
        push: repository on the Hugging Face Hub to upload to; Hub layout only.

    Example:
        >>> ExportSettings(format="onnx", weight_bits=8).file_name
        'model-8bit.onnx'
    """

    format: Format = "onnx"
    weight_bits: int | None = None
    agreement: float = 0.99
    images: int = 256
    batch_size: int = 16
    push: str | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            allowed = ", ".join(get_args(Format))
            raise ValueError(f"format is {self.format!r}; allowed: {allowed}")
        if self.weight_bits not in (None, 8):
            raise ValueError(f"weight_bits is {self.weight_bits!r}; 8 is what can be had")
        if self.weight_bits is not None and self.format != "onnx":
            raise ValueError(
                f"8-bit weights are written in ONNX files alone, not in {self.format}; use the"
                " format onnx, or leave weight_bits out"
            )
        if not 0 <= self.agreement <= 1:
            raise ValueError(
                f"agreement is {self.agreement!r}, but is a share of predictions: 0 to 1"
            )
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be at least 1")
        if self.push is not None and self.format != "hub":
            raise ValueError("only the format hub can be pushed; leave push out, or ask for hub")

    @property
    def file_name(self) -> str:
        """The default name of the file or folder."""
        return "model-8bit.onnx" if self.weight_bits else NAMES[self.format]


def export(
    source: str | Path | nn.Module,
    out: str | Path | None = None,
    *,
    format: Format = "onnx",
    weight_bits: int | None = None,
    agreement: float = 0.99,
    data: Any = None,
    example_input: Tensor | None = None,
    batch_axis: int = 0,
    images: int = 256,
    batch_size: int = 16,
    push: str | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a network for another runtime, and keep the file only if it agrees with the network.

    ``onnx`` (opset 18) and ``torch-export`` (``torch.export.load``) hold one graph of plain
    operators: batch norms folded, neurons written out step by step, any number of samples at once,
    all other sizes and the number of time steps fixed. It reads float32 images ``[B, C, H, W]``,
    or event frames ``[B, T, C, H, W]``, and gives logits ``[B, classes]``. ``hub`` is a folder in
    the layout of the Hugging Face Hub, which ``primesvt.load`` reads.

    Afterwards file and network compute the same samples: predictions, logits, and the spikes of
    every neuron layer are compared.

    Args:
        source: a run folder, a saved model, anything ``primesvt prune`` takes, or a module.
        out: the file, or the folder of the Hub layout; in the folder ``export`` beside the model
            when not given. A module needs it.
        format: ``onnx``, ``torch-export`` or ``hub``.
        weight_bits: 8 keeps weights in eight bits (``onnx`` only). So many of them, from the first
            layer on, stay in float32 that the predictions still agree.
        agreement: share of samples whose prediction must stay the same.
        data: what to compare on, as ``primesvt.prune`` takes it: its selection set; the model's own
            when not given.
        example_input: for a module without ``data``: inputs to compare on.
        batch_axis: of ``example_input``: the axis that counts samples.
        images: compare on so many samples, at most.
        batch_size: of the comparison.
        push: a repository on the Hugging Face Hub to upload the folder to.
        progress: called as ``progress(stage, done, total)``; a total of 0 is not known.

    Raises:
        ValueError: nothing that can be exported, a package that is missing, or a file that does
            not agree, which is deleted.
        FolderInUse: another process is writing to ``out``; a ``ValueError`` too.

    Example:
        >>> import tempfile, torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> shown = torch.rand(4, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export(net, f"{folder}/net.pt2", format="torch-export", example_input=shown)
        >>> made.agreement.predictions, made.input
        (1.0, 'float32 [batch, 1, 8, 8]')
    """
    settings = ExportSettings(
        format=format,
        weight_bits=weight_bits,
        agreement=agreement,
        images=images,
        batch_size=batch_size,
        push=push,
    )
    if format == "onnx":
        check_onnx()
    origin = open_origin(source)
    place = _place(origin, settings, out)
    samples = samples_of(
        origin,
        data=data,
        example_input=example_input,
        count=images,
        batch_size=batch_size,
        axis=batch_axis,
    )
    comparison = Comparison(model=origin.model, samples=samples, level=agreement, progress=progress)
    job = _Job(origin=origin, place=place, settings=settings, comparison=comparison)
    if progress is not None:
        progress("exporting", 0, 0)
    with file_lock(place):
        _place(origin, settings, out)  # what lies there now
        return job.hub() if format == "hub" else job.file()


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One export: the network, the place of the result, and the comparison to pass."""

    origin: ExportSource
    place: Path
    settings: ExportSettings
    comparison: Comparison

    def file(self) -> ExportResult:
        """Write a file, compare it as it is on disk, and only then give it its name."""
        samples = self.comparison.samples
        made, example = deploy(self.origin.model, samples.example()), samples.example()
        if self.settings.format == "onnx":
            payload = onnx_payload(
                made,
                example,
                axis=samples.axis,
                input_name=input_name(self.origin.model, example),
                about=about(self.origin.model, example),
                holds=self.comparison.holds if self.settings.weight_bits else None,
            )
        else:
            payload = program_payload(made, example, axis=samples.axis)
        staged = write_bytes(_staged(self.place), payload.content)
        try:
            run = payload.run(staged.read_bytes())
            found = self.comparison(run, payload.watched, payload.neurons)
            staged.replace(self.place)
        finally:
            staged.unlink(missing_ok=True)
        result = ExportResult(
            **self._known(),
            agreement=found,
            opset=payload.opset,
            sizes=(*self._before(), *payload.sizes),
            rounded=payload.rounded,
            notes=made.notes(),
        )
        write_json(self.place.with_name(f"{self.place.name}.json"), result.to_dict())
        return result

    def hub(self) -> ExportResult:
        """Write a folder, load and compare it, and only then give it its name."""
        from primesvt.exporting.hub import upload, write_hub

        push, staged = self.settings.push, _staged(self.place)
        found, size, notes = write_hub(
            self.origin, self.place, staged, self.comparison, repository=push
        )
        url = None if push is None else upload(self.place, push)
        return ExportResult(
            **self._known(),
            agreement=found,
            sizes=(*self._before(), size),
            notes=notes,
            url=url,
        )

    def _known(self) -> dict[str, Any]:
        samples = self.comparison.samples
        return {
            "path": self.place,
            "format": self.settings.format,
            "input": input_shape(samples.example(), axis=samples.axis),
            "output": "float32 [batch, classes]",
            "level": self.settings.agreement,
        }

    def _before(self) -> list[Size]:
        """Sizes of the unpruned and of the pruned network."""
        now = parameter_bytes(self.origin.model)
        if self.origin.run is None:
            return [Size(step="The network", weights=now)]
        metrics = self.origin.metrics()
        before = int(metrics["before"]["parameter_bytes"])
        return [
            Size(step="Before pruning", weights=before),
            Size(step="After pruning", weights=now),
        ]


def _place(origin: ExportSource, settings: ExportSettings, out: str | Path | None) -> Path:
    """The path of the result, checked before anything is computed."""
    if out is None:
        if isinstance(origin.source, nn.Module):
            raise ValueError("give out=, the name of the file to write")
        out = origin.home / "export" / settings.file_name
    place = Path(out)
    if settings.format == "hub":
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ValueError(f"{place} holds something else; choose a new or empty folder")
    elif place.is_dir():
        raise ValueError(f"{place} is a folder; name a file in it, such as {settings.file_name}")
    return place


def _staged(place: Path) -> Path:
    return place.with_name(f".{place.name}.unverified")

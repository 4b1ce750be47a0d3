"""Base classes of export formats: how a file is made, compared with the network, and named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from primesvt._files import write_bytes, write_json
from primesvt.exporting.agreement import Comparison
from primesvt.exporting.deploy import DeployedNetwork, deploy
from primesvt.exporting.result import ExportResult, Rounded, Size, input_shape
from primesvt.exporting.runtime import Runner
from primesvt.exporting.source import ExportSource
from primesvt.profiling.memory import parameter_bytes
from primesvt.registry import EXPORT_FORMATS

__all__ = ["FLOAT", "ExportFormat", "ExportJob", "FileFormat", "Payload", "find_format"]

FLOAT = "Exported"  # the step of a file in float32 among the sizes


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The bytes of an exported file, with runners to compare it and its size.

    Attributes:
        content: the file.
        run: makes a function of a batch from the file's bytes.
        watched: computes the same graph with the spikes of every neuron layer as further outputs.
        neurons: names of these, in that order.
        sizes: of the float32 file, and of this one.
        opset: of ONNX.
        rounded: which weights are in eight bits.
    """

    content: bytes = field(repr=False)
    run: Callable[[bytes], Runner] = field(repr=False)
    watched: Runner = field(repr=False)
    neurons: tuple[str, ...] = field(repr=False)
    sizes: tuple[Size, ...]
    opset: int | None = None
    rounded: Rounded | None = None


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """An export to be made: the network, the place of the result, and the comparison to pass.

    Attributes:
        origin: the network.
        place: the file, or the folder, of the result.
        format: its name.
        comparison: what the result has to pass.
        weight_bits: bits of a weight, where they are to be rounded.
        push: repository on the Hugging Face Hub to upload to.
    """

    origin: ExportSource
    place: Path
    format: str
    comparison: Comparison
    weight_bits: int | None = None
    push: str | None = None

    @property
    def staged(self) -> Path:
        """Where the result lies until it has passed."""
        return self.place.with_name(f".{self.place.name}.unverified")

    def known(self) -> dict[str, Any]:
        """What the result says whatever the format is."""
        samples = self.comparison.samples
        return {
            "path": self.place,
            "format": self.format,
            "input": input_shape(samples.example(), axis=samples.axis),
            "output": "float32 [batch, classes]",
            "level": self.comparison.level,
        }

    def before(self) -> list[Size]:
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


class ExportFormat(ABC):
    """Base class of export formats, each of which writes a network and compares the result with it.

    Class attributes:
        file_name: what the result is called where no name is given.
        is_folder: it is a folder.
        weight_bits: bits that weights may be rounded to.
        can_push: it can be uploaded to the Hugging Face Hub.
    """

    file_name: ClassVar[str] = "model.bin"
    is_folder: ClassVar[bool] = False
    weight_bits: ClassVar[tuple[int, ...]] = ()
    can_push: ClassVar[bool] = False

    def check(self) -> None:
        """Raise ``ValueError`` where a package that it needs is missing."""
        return  # most need none

    @abstractmethod
    def write(self, job: ExportJob) -> ExportResult:
        """Write the result where it is staged, compare it, and only then give it its name."""


class FileFormat(ExportFormat):
    """Base class of export formats that are one file; a subclass makes the bytes of it."""

    @abstractmethod
    def payload(self, made: DeployedNetwork, example: Tensor, job: ExportJob) -> Payload:
        """The bytes of the file, and what runs them.

        Args:
            made: the network, batch norms folded and neurons written out.
            example: an input with two samples or more.
            job: what is asked for.
        """

    def write(self, job: ExportJob) -> ExportResult:
        """Write a file, compare it as it is on disk, and only then give it its name."""
        example = job.comparison.samples.example()
        made = deploy(job.origin.model, example)
        payload = self.payload(made, example, job)
        staged = write_bytes(job.staged, payload.content)
        try:
            run = payload.run(staged.read_bytes())
            found = job.comparison(run, payload.watched, payload.neurons)
            staged.replace(job.place)
        finally:
            staged.unlink(missing_ok=True)
        result = ExportResult(
            **job.known(),
            agreement=found,
            opset=payload.opset,
            sizes=(*job.before(), *payload.sizes),
            rounded=payload.rounded,
            notes=made.notes(),
        )
        write_json(job.place.with_name(f"{job.place.name}.json"), result.to_dict())
        return result


def find_format(name: str) -> ExportFormat:
    """A format by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> find_format("onnx").file_name
        'model.onnx'
    """
    found: ExportFormat = EXPORT_FORMATS.find_class(name, ExportFormat)()
    return found

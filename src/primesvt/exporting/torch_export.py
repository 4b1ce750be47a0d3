"""Export a network with ``torch.export``."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from primesvt.exporting.deploy import DeployedNetwork
from primesvt.exporting.formats import FLOAT, ExportJob, FileFormat, Payload
from primesvt.exporting.result import Size
from primesvt.exporting.runtime import module_runner, program_runner
from primesvt.models.fast_paths import as_evaluated
from primesvt.registry import EXPORT_FORMATS

__all__ = ["ExportedGraph", "TorchExportFormat", "export_program", "program_bytes"]

BATCH = "batch"


@EXPORT_FORMATS("torch-export")
class TorchExportFormat(FileFormat):
    """One .pt2 file for ``torch.export.load``."""

    file_name = "model.pt2"

    def payload(self, made: DeployedNetwork, example: Tensor, job: ExportJob) -> Payload:
        """The exported program."""
        axis = job.comparison.samples.axis
        content = program_bytes(export_program(made, example, axis=axis))
        watched = export_program(made, example, axis=axis, watch=True)
        weights = sum(t.numel() * t.element_size() for t in made.network.state_dict().values())
        return Payload(
            content=content,
            run=program_runner,
            watched=module_runner(watched.program.module()),
            neurons=watched.outputs[1:],
            sizes=(Size(step=FLOAT, weights=weights, file=len(content)),),
        )


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """An exported program, and the names of its outputs.

    Attributes:
        program: from ``input`` to the outputs, any number of samples at once.
        outputs: ``logits``, then the neuron layers whose spikes are given too, in forward order;
            ``NAME#2`` is the second call of one that is called more than once.
        example: the input that it was written with.
        axis: of the input that counts the samples.
    """

    program: ExportedProgram = field(repr=False)
    outputs: tuple[str, ...]
    example: Tensor = field(repr=False)
    axis: int = 0


def export_program(
    made: DeployedNetwork, example: Tensor, *, axis: int = 0, watch: bool = False
) -> ExportedGraph:
    """Trace a network with ``torch.export``, for any number of samples.

    Args:
        made: the network.
        example: an input with two samples or more; all its other axes are fixed.
        axis: the one that counts samples.
        watch: give the spikes of every neuron layer too.

    Raises:
        ValueError: PyTorch cannot follow the network, or it fixes the number of samples.
    """
    whole = _Whole(made, watch=watch).eval()
    sizes = {axis: Dim(BATCH, min=1)}
    try:
        with torch.no_grad(), as_evaluated(), _quiet():
            whole(example)  # what is noted while the exporter follows, it takes back
            program = torch.export.export(whole, (example,), dynamic_shapes=(sizes,))
    except Exception as error:  # the exporter raises errors of many kinds
        # The first line of what the exporter says; the rest is for its developers.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0] if lines else type(error).__name__
        raise ValueError(
            f"PyTorch cannot export this model: {said[:300]}; its forward must not depend on the"
            " values of tensors, nor fix the number of samples (len(x) does, x.shape[0] does not)"
        ) from error
    for node in program.graph.nodes:  # stack traces: larger than the graph, and full of local paths
        node.meta = {name: node.meta[name] for name in ("val", "tensor_meta") if name in node.meta}
    return ExportedGraph(program=program, outputs=whole.outputs(), example=example, axis=axis)


def program_bytes(graph: ExportedGraph) -> bytes:
    """Serialise a graph as a file that ``torch.export.load`` reads."""
    buffer = io.BytesIO()
    torch.export.save(graph.program, buffer)
    return buffer.getvalue()


class _Whole(nn.Module):
    """A network with reset neurons; gives the spikes beside the logits where asked for."""

    def __init__(self, made: DeployedNetwork, *, watch: bool) -> None:
        super().__init__()
        self.model = made.network
        self._neurons = dict(made.neurons)  # a plain dict: no second path to the same modules
        self._watch = watch
        self._calls: dict[str, int] = {}

    def forward(self, input: Tensor) -> Any:
        for neuron in self._neurons.values():
            neuron.seen = [] if self._watch else None
        logits = self.model(input)
        spikes = []
        for name, neuron in self._neurons.items():
            self._calls[name] = len(neuron.seen or ())
            spikes += neuron.seen or []
            neuron.seen = None
            neuron.rest()  # so that every forward begins there
        return (logits, *spikes) if self._watch else logits

    def outputs(self) -> tuple[str, ...]:
        names = ["logits"]
        for name, calls in self._calls.items() if self._watch else ():
            names += [name if number == 1 else f"{name}#{number}" for number in range(1, calls + 1)]
        return tuple(names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the exporter prints about errors that it raises anyway, and about state.

    What neurons keep in attributes is at rest whenever the exported program begins.
    """
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = shapes.level
    shapes.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attribute")
            yield
    finally:
        shapes.setLevel(level)

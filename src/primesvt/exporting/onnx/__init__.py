"""Export as ONNX: float32 or 8-bit weights, channels padded to multiples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from primesvt.exporting.deploy import DeployedNetwork
from primesvt.exporting.formats import FLOAT, ExportJob, FileFormat, Payload
from primesvt.exporting.onnx.channel_padding import aligned
from primesvt.exporting.onnx.int8_weights import (
    fewest,
    rounded_count,
    weight_count,
    with_8bit_weights,
)
from primesvt.exporting.onnx.model import OPSET, check_onnx, only_logits, onnx_model, weight_bytes
from primesvt.exporting.result import Rounded, Size, about, input_name
from primesvt.exporting.runtime import Runner, onnx_runner
from primesvt.exporting.torch_export import ExportedGraph, export_program
from primesvt.registry import EXPORT_FORMATS

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OnnxFormat", "onnx_payload"]

ROUNDED = "Exported, 8-bit weights"


@EXPORT_FORMATS("onnx")
class OnnxFormat(FileFormat):
    """One ONNX file (opset 18) for onnxruntime and device tools."""

    file_name = "model.onnx"
    weight_bits = (8,)

    def check(self) -> None:
        """Raise ``ValueError`` where onnx or onnxruntime is missing."""
        check_onnx()

    def payload(self, made: DeployedNetwork, example: Tensor, job: ExportJob) -> Payload:
        """The ONNX file, with weights in eight bits where they are asked for."""
        return onnx_payload(
            made,
            example,
            axis=job.comparison.samples.axis,
            input_name=input_name(job.origin.model, example),
            about=about(job.origin.model, example),
            holds=job.comparison.holds if job.weight_bits else None,
        )


def onnx_payload(
    made: DeployedNetwork,
    example: Tensor,
    *,
    axis: int = 0,
    input_name: str = "images",
    about: Mapping[str, str] | None = None,
    holds: Callable[[Runner], bool] | None = None,
) -> Payload:
    """Export a network as an ONNX file.

    Args:
        made: the network.
        example: an input with two samples or more.
        axis: the one that counts samples.
        input_name: of the input.
        about: what the file says of itself.
        holds: asks for 8-bit weights, as many from the output on as can be rounded while ``holds``
            says of the file's logits that they are good enough.

    Raises:
        ValueError: no weight can be rounded, or the file would not be smaller.
    """
    graph = export_program(made, example, axis=axis, watch=True)
    watched = aligned(onnx_model(graph, input_name=input_name, about=about or {}))
    shipped = only_logits(watched)
    if holds is None:
        return _payload(graph, watched, shipped)
    front = _front(shipped, holds)
    rounded = with_8bit_weights(watched, front=front)
    payload = _payload(graph, rounded, only_logits(rounded), _size(FLOAT, shipped))
    before, after = (size.file or 0 for size in payload.sizes)
    if after >= before:
        raise ValueError(
            f"8-bit weights would make a file of {after:,} bytes out of {before:,}; leave"
            " weight_bits out"
        )
    found, total = rounded_count(rounded), weight_count(shipped)
    return replace(payload, rounded=Rounded(bits=8, layers=found, total=total, front=front))


def _front(model: ModelProto, holds: Callable[[Runner], bool]) -> int:
    """How many weights, counted from the input, must stay in float32."""

    def passes(front: int) -> bool:
        rounded = with_8bit_weights(model, front=front)
        return holds(onnx_runner(rounded.SerializeToString()))

    front = fewest(passes, weight_count(model) - 1)
    if front is None:
        raise ValueError(
            "no weight can be rounded to 8 bits without more predictions changing than allowed;"
            " ask for a lower agreement, or leave weight_bits out"
        )
    return front


def _payload(
    graph: ExportedGraph, watched: ModelProto, shipped: ModelProto, *before: Size
) -> Payload:
    step = ROUNDED if before else FLOAT
    return Payload(
        content=shipped.SerializeToString(),
        run=onnx_runner,
        watched=onnx_runner(watched.SerializeToString()),
        neurons=graph.outputs[1:],
        sizes=(*before, _size(step, shipped)),
        opset=OPSET,
    )


def _size(step: str, model: ModelProto) -> Size:
    return Size(step=step, weights=weight_bytes(model), file=model.ByteSize())

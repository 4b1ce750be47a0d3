"""Convert an exported graph to a small ONNX file with named axes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from primesvt.exporting.torch_export import BATCH, ExportedGraph

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OPSET", "check_onnx", "only_logits", "onnx_model", "weight_bytes"]

OPSET = 18
_LARGEST = 2**31 - 2**20  # one file of protobuf


def check_onnx() -> None:
    """Raise ``ValueError`` in one line where the packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the format onnx needs a package that is not installed ({error.name}): "
            "pip install onnx onnxruntime onnxscript"
        ) from error


def onnx_model(graph: ExportedGraph, *, input_name: str, about: Mapping[str, str]) -> ModelProto:
    """Convert a graph to ONNX operators, opset 18, with all weights inside.

    Args:
        graph: with as many outputs as it has.
        input_name: of the input.
        about: what the file says of itself (``metadata_props``).

    Raises:
        ValueError: an operator without a counterpart, or more weights than one file takes.
    """
    largest = sum(t.numel() * t.element_size() for t in graph.program.state_dict.values())
    if largest > _LARGEST:
        raise ValueError(f"the weights take {largest:,} bytes, more than one ONNX file can hold")
    try:
        program = torch.onnx.export(
            graph.program,
            (graph.example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=[n if n == "logits" else f"{n}:spikes" for n in graph.outputs],
            verbose=False,
            external_data=False,
        )
    except Exception as error:  # the exporter raises errors of many kinds
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"PyTorch cannot write this model as ONNX: {first[:300]}") from error
    assert program is not None
    model = program.model_proto
    _tidy(model, graph)
    model.producer_name, model.producer_version = "primesvt", version("primesvt")
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    return model


def only_logits(model: ModelProto) -> ModelProto:
    """A copy of a graph with the logits as only output, without nodes that only spikes needed."""
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.output[1:]
    needed = {made.graph.output[0].name}
    kept = []
    for node in reversed(made.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    _refill(made.graph.node, list(reversed(kept)))
    _refill(made.graph.initializer, [t for t in made.graph.initializer if t.name in needed])
    return made


def weight_bytes(model: ModelProto) -> int:
    """Bytes of all weights inside, in the types they are kept in."""
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def _tidy(model: ModelProto, graph: ExportedGraph) -> None:
    """Name the batch axis, and remove the exporter's notes, which can outweigh the weights."""
    content = model.graph
    symbol = content.input[0].type.tensor_type.shape.dim[graph.axis].dim_param
    for value in (*content.input, *content.output):
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param == symbol:
                dim.dim_param = BATCH
    del model.metadata_props[:], content.metadata_props[:], content.value_info[:]
    for entry in (*content.input, *content.output, *content.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    for node in content.node:
        for name in ("metadata_props", "doc_string", "name"):
            node.ClearField(name)
    content.name = "primesvt"
    _rename(model)


def _rename(model: ModelProto) -> None:
    """Name weights as in the network, and all other values by short numbers."""
    content = model.graph
    fixed = {value.name for value in (*content.input, *content.output)}
    names = {t.name: t.name.removeprefix("model.") for t in content.initializer}
    for tensor in content.initializer:
        tensor.name = names[tensor.name]
    values = (name for node in content.node for name in node.output if name)
    for number, name in enumerate(values):
        if name not in fixed:
            names[name] = f"#{number}"
    for node in content.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]


def _refill(field: Any, entries: list[Any]) -> None:
    copies = [type(entry)() for entry in entries]
    for copy, entry in zip(copies, entries, strict=True):
        copy.CopyFrom(entry)
    del field[:]
    field.extend(copies)

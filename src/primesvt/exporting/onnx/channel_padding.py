"""Pad channels of an ONNX file with zeros to the multiples that fast kernels need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["MULTIPLE", "aligned"]

MULTIPLE = 4  # channels; the blocked kernels of onnxruntime take no other number of them
_LEAST = 16  # input channels from which on a convolution gains by it; depthwise ones always do


def aligned(model: ModelProto, multiple: int = MULTIPLE) -> ModelProto:
    """A copy whose convolutions read a multiple of channels, padded with zeros.

    Depthwise convolutions of any width, and others of a kernel larger than 1x1, are many times
    slower in onnxruntime otherwise. What is computed is the same, sums of zeros apart.

    Args:
        model: a graph in ONNX's operators.
        multiple: of channels.

    Example:
        >>> from onnx import ModelProto
        >>> len(aligned(ModelProto()).graph.node)
        0
    """
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    plans = _Plans(made, multiple)
    for place, node in enumerate(made.graph.node):
        plans.look(place, node)
    plans.write()
    return made


@dataclass
class _Widened:
    """The channels of zeros that one convolution gets, and what adds or drops them."""

    inputs: int = 0
    outputs: int = 0
    pads: bool = False  # its input tensor; else the layer in front gives zeros
    drops: bool = False  # from its output tensor; else the layer behind reads zeros
    groups: int = 0  # more of them


@dataclass
class _Plans:
    """How every convolution is padded; all are found first, and then written."""

    model: ModelProto
    multiple: int
    found: dict[int, _Widened] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = self.model.graph.node
        self.stored = {t.name: t for t in self.model.graph.initializer}
        self.maker = {name: place for place, node in enumerate(nodes) for name in node.output}
        self.readers: dict[str, list[int]] = {}
        for place, node in enumerate(nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(place)
        for output in self.model.graph.output:
            self.readers.setdefault(output.name, []).append(-1)

    def look(self, place: int, node: NodeProto) -> None:
        shape = self._weights(place)
        if shape is None or len(shape) != 4:
            return
        groups = _groups(node)
        missing = -shape[1] * groups % self.multiple
        if not missing:
            return
        if groups == shape[0] > 1 and shape[1] == 1:
            self._depthwise(place, node, missing)
        elif groups == 1 and max(shape[2:]) > 1 and shape[1] >= _LEAST:
            own = self._at(place)
            own.pads = own.inputs == 0  # else the depthwise convolution in front gives them
            own.inputs = missing

    def _depthwise(self, place: int, node: NodeProto, missing: int) -> None:
        own = self._at(place)
        own.groups = own.outputs = missing
        front = self.maker.get(node.input[0], -1)
        if self.readers[node.input[0]] == [place] and self._plain(front):
            self._at(front).outputs = missing
        else:
            own.pads = True
        behind = self.readers.get(node.output[0], [-1])
        if len(behind) == 1 and self._plain(behind[0]):
            self._at(behind[0]).inputs = missing
        else:
            own.drops = True

    def _plain(self, place: int) -> bool:
        """Whether a node is a convolution of all its inputs, with weights of a known shape."""
        shape = self._weights(place) if place >= 0 else None
        return shape is not None and len(shape) == 4 and _groups(self._node(place)) == 1

    def _weights(self, place: int) -> tuple[int, ...] | None:
        """The shape of a convolution's weights, if they are stored and nothing else reads them."""
        node = self._node(place)
        if node.op_type != "Conv" or any(
            name not in self.stored or self.readers[name] != [place] for name in node.input[1:]
        ):
            return None
        return tuple(self.stored[node.input[1]].dims)

    def _node(self, place: int) -> NodeProto:
        node: NodeProto = self.model.graph.node[place]
        return node

    def _at(self, place: int) -> _Widened:
        return self.found.setdefault(place, _Widened())

    def write(self) -> None:
        """Widen weights, and insert the nodes that pad and drop channels."""
        graph, amounts = self.model.graph, _Amounts()
        nodes: list[NodeProto] = []
        for place, node in enumerate(graph.node):
            plan = self.found.get(place)
            nodes += [node] if plan is None else self._around(node, plan, amounts)
        copies = [type(node)() for node in nodes]
        for copy, node in zip(copies, nodes, strict=True):
            copy.CopyFrom(node)
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.extend(amounts.tensors())

    def _around(self, node: NodeProto, plan: _Widened, amounts: _Amounts) -> list[NodeProto]:
        from onnx import helper

        mark, outputs = node.output[0], self.stored[node.input[1]].dims[0]
        inputs = 0 if plan.groups else plan.inputs
        self._widen(node.input[1], [(0, plan.outputs), (0, inputs), (0, 0), (0, 0)])
        for name in node.input[2:]:
            self._widen(name, [(0, plan.outputs)])
        nodes = [node]
        if plan.pads:
            wide, extra = f"{mark}<", plan.groups or plan.inputs
            ends = amounts([0, 0, 0, 0, 0, extra, 0, 0])
            nodes.insert(0, helper.make_node("Pad", [node.input[0], ends], [wide]))
            node.input[0] = wide
        if plan.groups:
            next(a for a in node.attribute if a.name == "group").i += plan.groups
        if plan.drops:
            wide = f"{mark}>"
            cut = [amounts([0]), amounts([outputs]), amounts([1])]
            nodes.append(helper.make_node("Slice", [wide, *cut], [mark]))
            node.output[0] = wide
        return nodes

    def _widen(self, name: str, amounts: list[tuple[int, int]]) -> None:
        from onnx import numpy_helper

        tensor = self.stored[name]
        wide = np.pad(numpy_helper.to_array(tensor), amounts)
        tensor.CopyFrom(numpy_helper.from_array(wide, name))


class _Amounts:
    """Small constants of the graph, each kept once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, values: list[int]) -> str:
        return self._known.setdefault(tuple(values), f"@{len(self._known)}")

    def tensors(self) -> list[Any]:
        from onnx import numpy_helper

        return [
            numpy_helper.from_array(np.array(values, dtype=np.int64), name)
            for values, name in self._known.items()
        ]


def _groups(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)

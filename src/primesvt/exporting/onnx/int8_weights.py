"""Weights in eight bits inside an ONNX file; everything that is computed stays in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["fewest", "quantized", "rounded_count", "weight_count", "with_8bit_weights"]

_LEVELS = 127
_COST = 180  # bytes that two more nodes and three more names take in the file
Array = npt.NDArray[Any]


def quantized(weight: Array, axis: int) -> tuple[Array, Array]:
    """Whole numbers from -127 to 127 and a scale per channel: ``weight`` is about ``q * scale``.

    The error is at most half a scale, ``max(abs(channel)) / 254``.

    Args:
        weight: float32.
        axis: of its output channels, each with a scale of its own.

    Example:
        >>> q, scale = quantized(np.float32([[1.0, -0.5], [0.0, 0.0]]), 0)
        >>> q.tolist(), [round(float(each), 4) for each in scale]
        ([[127, -64], [0, 0]], [0.0079, 1.0])
    """
    others = tuple(a for a in range(weight.ndim) if a != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
    whole = np.rint(weight / scale).clip(-_LEVELS, _LEVELS).astype(np.int8)
    return whole, scale.reshape(-1)


def with_8bit_weights(model: ModelProto, *, front: int = 0) -> ModelProto:
    """A copy whose convolutions and products read int8 weights, cast and multiplied by their scale.

    One scale per output channel, symmetric; biases and all activations stay float32. Runtimes fold
    that into float32 weights when they load the file, and are as quick as before; behind
    ``DequantizeLinear`` onnxruntime would unpack them in every call. A weight so
    small that the file would grow is left alone, and so are the first ``front`` weights: a spike
    that rounding flips there is seen by every layer behind.

    Source: Jacob et al. (arXiv 1712.05877), weights with a scale per channel.
    """
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    made = ModelProto()
    made.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    scaled = []
    for name, axis in list(dict(_weights(model)).items())[front:]:
        weight = numpy_helper.to_array(stored[name])
        channels = weight.shape[axis]
        if weight.dtype != np.float32 or 3 * weight.size <= 4 * channels + _COST:
            continue
        whole, scale = quantized(weight, axis)
        scale = scale.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
        made.graph.initializer.remove(stored[name])
        made.graph.initializer.append(numpy_helper.from_array(whole, f"{name}:q"))
        made.graph.initializer.append(numpy_helper.from_array(scale, f"{name}:s"))
        scaled += [
            helper.make_node("Cast", [f"{name}:q"], [f"{name}:f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}:f", f"{name}:s"], [name]),
        ]
    nodes = [*scaled, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def rounded_count(model: ModelProto) -> int:
    """Number of weights that are in eight bits."""
    from onnx import TensorProto

    return sum(tensor.data_type == TensorProto.INT8 for tensor in model.graph.initializer)


def weight_count(model: ModelProto) -> int:
    """Number of weights that convolutions and matrix products read."""
    return len(dict(_weights(model)))


def fewest(passes: Callable[[int], bool], most: int) -> int | None:
    """The smallest number up to ``most`` that passes, by halving; ``None`` where ``most`` fails.

    Numbers above one that passes are taken to pass too.

    Example:
        >>> fewest(lambda number: number >= 5, 40), fewest(lambda number: False, 40)
        (5, None)
    """
    if passes(0):
        return 0
    if most < 1 or not passes(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _weights(model: ModelProto) -> Iterator[tuple[str, int]]:
    """Names of the weights of convolutions and products, and their axis of output channels."""
    stored = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and stored.get(node.input[1], 0) > 1:
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            rows = turned or node.op_type == "Conv"
            yield node.input[1], 0 if rows else stored[node.input[1]] - 1

"""Reductions and pooling: a plain sum of activations may drop a channel, all else freezes it."""

from __future__ import annotations

from primesvt.channels.equate import equate
from primesvt.channels.rules.registry import STORE, Axes, Call, rule
from primesvt.channels.symbols import Axis, Symbol, confirm, flatten, size_of, unit


@rule("sum")
def total(call: Call) -> Axes:
    axes = call.axes("self")
    dims = call.dims("dim", len(axes))
    if call.weights_alone("self"):
        return _reduced(call)
    for d in dims:
        call.read("self", d)
        dropped(axes[d])
    return _without(axes, dims, keep=bool(call.get("keepdim", False)))


def dropped(axis: Axis) -> None:
    """An axis of size 1 that is summed over is a real one; beside others a factor tells nothing."""
    if size_of(axis) == 1:
        for symbol in flatten(axis):
            confirm(symbol)


@rule(
    "mean",
    "var",
    "std",
    "amax",
    "amin",
    "prod",
    "any",
    "all",
    "argmax",
    "argmin",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
)
def reduce(call: Call) -> Axes:
    return _reduced(call)


def _reduced(call: Call) -> Axes:
    axes = call.axes("self")
    dims = call.dims("dim", len(axes))
    reason = f"{call.name.removeprefix('aten::')} over the axis"
    if call.weights_alone("self"):
        reason = f"{reason} {STORE}"
    for d in dims:
        call.freeze(axes[d], reason)
    return _without(axes, dims, keep=bool(call.get("keepdim", False)))


@rule("max", "min", "median", "var_mean", "std_mean")
def extreme(call: Call) -> Axes | list[Axes]:
    out = _reduced(call)
    return [out, out] if len(call.outputs) > 1 else out


@rule("_softmax", "_safe_softmax", "_log_softmax", "softmax", "log_softmax")
def softmax(call: Call) -> Axes:
    axes = call.axes("self")
    call.freeze(axes[call["dim"] % len(axes)], "softmax over the axis")
    return axes


@rule("native_layer_norm")
def layer_norm(call: Call) -> list[Axes]:
    axes = call.axes("input")
    count = len(call["normalized_shape"])
    for axis in axes[-count:]:
        call.freeze(axis, "layer normalisation over the axis")
    _tie_affine(call, axes[-count:])
    statistics = _without(axes, list(range(len(axes) - count, len(axes))), keep=True)
    return [axes, statistics, statistics]


def _tie_affine(call: Call, axes: Axes) -> None:
    """The scale and shift of a norm lie along the channels."""
    for vector in ("weight", "bias"):
        if call.get(vector) is not None:
            for a, b in zip(axes, call.axes(vector), strict=True):
                equate(a, b)


@rule("_fused_rms_norm")
def rms_norm(call: Call) -> list[Axes]:
    axes = call.axes("input")
    count = len(call["normalized_shape"])
    for axis in axes[-count:]:
        call.freeze(axis, "root mean square normalisation over the axis")
    _tie_affine(call, axes[-count:])
    return [axes, _without(axes, list(range(len(axes) - count, len(axes))), keep=True)]


@rule("native_group_norm")
def group_norm(call: Call) -> list[Axes]:
    axes = call.axes("input")
    for axis in axes[1:]:
        call.freeze(axis, "group normalisation over the axis")
    _tie_affine(call, axes[1:2])
    statistics: list[Axes] = [[(Symbol(n),) for n in t.shape] for t in call.outputs[1:]]
    return [axes, *statistics]


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "max_pool2d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def pool(call: Call) -> Axes | list[Axes]:
    """Axes that the window covers are frozen; those it passes one by one keep their symbols."""
    axes = call.axes(next(iter(call.arguments)))
    spatial = 3 if "3d" in call.name else 1 if "1d" in call.name else 2
    kernel = _each(call.get("kernel_size"), spatial)
    for i in range(spatial):
        d = len(axes) - spatial + i
        size = call.outputs[0].shape[d]
        if kernel is None or kernel[i] != 1 or size != size_of(axes[d]):
            call.freeze(axes[d], "pooling mixes the axis")
            axes[d] = call.frozen(size, "pooling mixes the axis")
    return [axes, list(axes)] if len(call.outputs) > 1 else axes


def _each(value: int | list[int] | None, count: int) -> list[int] | None:
    if value is None:
        return None
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _without(axes: Axes, dims: list[int], *, keep: bool) -> Axes:
    if keep:
        return [unit() if d in dims else a for d, a in enumerate(axes)]
    return [a for d, a in enumerate(axes) if d not in dims]

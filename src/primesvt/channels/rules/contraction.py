"""Convolution, matrix products and batch norm: where channels are made, read and followed."""

from __future__ import annotations

from primesvt.channels.equate import equate
from primesvt.channels.rules.reduction import dropped
from primesvt.channels.rules.registry import STORE, Axes, Call, rule
from primesvt.channels.symbols import Axis, Symbol, flatten, freeze, mark_made, size_of
from primesvt.channels.views import reshape


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(call: Call) -> Axes:
    source = call.axes("input")
    weight = call.axes("weight")
    groups = int(call["groups"])
    transposed = bool(call.get("transposed", False))
    made, read = (1, 0) if transposed else (0, 1)
    channels = len(source) - (len(weight) - 1)
    if groups == 1:
        equate(source[channels], weight[read])
        out = weight[made]
        _apply_weight(call, channels, read)
    elif transposed:
        out = _grouped_transposed(call, source[channels], weight, groups, channels)
    else:
        out = _grouped(call, source[channels], weight, groups, channels)
    if groups == 1:
        _make(call, "weight", made, out)
    call.trace.layer(source[channels], out)
    if call.get("bias") is not None:
        equate(out, call.axes("bias")[0])
    return [*source[:channels], out, *_spatial(call, source[channels + 1 :], channels)]


def _spatial(call: Call, axes: Axes, channels: int) -> Axes:
    """A 1x1 window passes an axis one by one; any other mixes it."""
    kernel = call["weight"].shape[2:]
    out: Axes = []
    for i, axis in enumerate(axes):
        passes = kernel[i] == 1 and _at(call["stride"], i) == 1 and _at(call["padding"], i) == 0
        if passes and not call.get("transposed", False):
            out.append(axis)
            continue
        call.freeze(axis, "the convolution slides over the axis")
        size = call.outputs[0].shape[channels + 1 + i]
        out.append(call.frozen(size, "the convolution slides over the axis"))
    return out


def _at(values: list[int], index: int) -> int:
    return values[index] if len(values) > 1 else values[0]


def _grouped(call: Call, source: Axis, weight: Axes, groups: int, channels: int) -> Axis:
    width = size_of(source) // groups
    made = size_of(weight[0]) // groups
    name = _name(call, "weight")
    if width == 1:  # depthwise: the groups are the channels, each makes `made` of them
        if made == 1:
            equate(source, weight[0])
            out = source
        else:
            factor = Symbol(made)
            equate((*source, factor), weight[0])
            out = weight[0]
        if name is not None:
            call.trace.grouped(name[0], source)
        return out
    block, inner = reshape([source], [groups, width])
    equate(inner, weight[1])
    outer, _ = reshape([weight[0]], [groups, made])
    equate(block, outer)
    freeze(block, call.why("the groups of a convolution"))
    _apply_weight(call, channels, 1)
    _make(call, "weight", 0, weight[0])
    if name is not None:
        call.trace.grouped(name[0], block)
    return weight[0]


def _grouped_transposed(call: Call, source: Axis, weight: Axes, groups: int, channels: int) -> Axis:
    """A transposed weight is ``[inputs, outputs of one group, ..]``."""
    name = _name(call, "weight")
    equate(source, weight[0])
    if size_of(source) == groups:  # depthwise
        if name is not None:
            call.trace.grouped(name[0], source)
        if size_of(weight[1]) == 1:
            return source
        call.freeze(weight[1], "outputs of one group of a convolution")
        return (*source, *weight[1])
    block, _ = reshape([weight[0]], [groups, size_of(source) // groups])
    freeze(block, call.why("the groups of a convolution"))
    _apply_weight(call, channels, 0)
    _make(call, "weight", 1, weight[1])
    if name is not None:
        call.trace.grouped(name[0], block)
    return (*block, *weight[1])


@rule("embedding")
def embedding(call: Call) -> Axes:
    """A table that is looked up along its rows makes the channels along its columns."""
    rows, columns = call.axes("weight")
    call.freeze(rows, "entries along the axis are looked up by number")
    _make(call, "weight", 1, columns)
    return [*call.axes("indices"), columns]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[Axes]:
    """``g * v / |v|``, with one norm for every index of an axis: that axis passes."""
    axes, sizes = call.axes("v"), call.axes("g")
    dim = call.get("dim", 0) % len(axes)
    for d, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        if d == dim:
            equate(axis, size)
        else:
            call.freeze(axis, f"a norm over the axis {STORE}")
    return [axes, sizes]


@rule("addbmm")
def summed_products(call: Call) -> Axes:
    """Matrix products that are summed over the batch: both axes are contracted."""
    a, b = call.axes("batch1"), call.axes("batch2")
    for d, other in ((0, 0), (2, 1)):
        equate(a[d], b[other])
        _contract(call, "batch1", d, "batch2", other)
        _contract(call, "batch2", other, "batch1", d)
        dropped(a[d])
    out = [a[1], b[2]]
    given = call.axes("self")
    for x, y in zip(reversed(out), reversed(given), strict=False):
        if size_of(x) == size_of(y):
            equate(x, y)
    return out


@rule("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot")
def product(call: Call) -> Axes:
    """``[.., n, k] @ [.., k, m]``; leading axes are equated, the contracted one is dropped."""
    left, right = _operands(call)
    a, b = call.axes(left), call.axes(right)
    inner = max(0, len(b) - 2)
    for x, y in zip(a[:inner], b[:inner], strict=False):
        if not (_broadcasts(x) or _broadcasts(y)):  # einsum inserts such axes on either side
            equate(x, y)
    equate(a[-1], b[inner])
    _contract(call, left, len(a) - 1, right, inner)
    _contract(call, right, inner, left, len(a) - 1)
    if _name(call, right) is None and _name(call, left) is None:
        dropped(a[-1])
    out = [*a[:-1], *b[inner + 1 :]]
    if len(b) > inner + 1 and _is_weight(call, right):
        _make(call, right, inner + 1, b[inner + 1])
        call.trace.layer(a[-1], b[inner + 1])
    if len(a) > 1 and _is_weight(call, left):
        _make(call, left, len(a) - 2, a[-2])
        call.trace.layer(b[inner], a[-2])
    if call.arguments.get("self") is not None and left != "self":
        for x, y in zip(reversed(out), reversed(call.axes("self")), strict=False):
            if size_of(x) == size_of(y):
                equate(x, y)
    return out


def _broadcasts(axis: Axis) -> bool:
    return all(s.broadcasts for s in flatten(axis))


def _operands(call: Call) -> tuple[str, str]:
    names = list(call.arguments)
    for left, right in (
        ("batch1", "batch2"),
        ("mat1", "mat2"),
        ("self", "mat2"),
        ("mat", "vec"),
        ("self", "vec"),
        ("self", "tensor"),
        ("self", "other"),
    ):
        if left in names and right in names:
            return left, right
    raise AssertionError(names)


@rule("linear")
def linear(call: Call) -> Axes:
    source, weight = call.axes("input"), call.axes("weight")
    equate(source[-1], weight[1])
    _apply_weight(call, len(source) - 1, 1)
    _make(call, "weight", 0, weight[0])
    call.trace.layer(source[-1], weight[0])
    if call.get("bias") is not None:
        equate(weight[0], call.axes("bias")[0])
    return [*source[:-1], weight[0]]


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "batch_norm",
)
def batch_norm(call: Call) -> list[Axes]:
    axes = call.axes("input")
    channel = axes[1] if len(axes) > 1 else axes[0]
    for vector in ("weight", "bias", "running_mean", "running_var"):
        if call.arguments.get(vector) is not None:
            equate(channel, call.axes(vector)[0])
    rest: list[Axes] = [
        [channel]
        if t.dim() == 1 and t.shape[0] == size_of(channel)
        else [(Symbol(n),) for n in t.shape]
        for t in call.outputs[1:]
    ]
    return [axes, *rest]


def _name(call: Call, argument: str) -> tuple[str, tuple[int, ...]] | None:
    return call.trace.weight(call.arguments[argument])


def _link(call: Call, role: str, argument: str, dim: int) -> None:
    weight, axis = _name(call, argument), call.axes(argument)[dim]
    found = None
    if weight is not None and weight[1][dim] >= 0:
        found = (weight[0], weight[1][dim])
    elif call.trace.weighs(call[argument]):
        found = call.trace.parametrized(call.module, axis, last=True)
    if found is not None:
        call.trace.link(role, found, axis)


def _is_weight(call: Call, argument: str) -> bool:
    """Whether the argument is a weight, or computed from weights alone."""
    return _name(call, argument) is not None or call.trace.weighs(call[argument])


def _make(call: Call, argument: str, dim: int, axis: Axis) -> None:
    """Record which parameter produces an output axis, also where the weight is computed from it."""
    weight = _name(call, argument)
    made = None
    if weight is not None and weight[1][dim] >= 0:
        made = (weight[0], weight[1][dim])
    elif call.trace.weighs(call[argument]):
        made = call.trace.parametrized(call.module, axis, last=False) or call.trace.along(axis)
    if made is not None:
        mark_made(axis)
        call.trace.link("producer", made, axis)


def _contract(call: Call, operand: str, dim: int, other: str, other_dim: int) -> None:
    """Record that an axis is read and can be silenced; freeze it if no activation is involved."""
    if call.weights_alone(operand, other):
        call.freeze(call.axes(operand)[dim], f"a product over the axis {STORE}")
        return
    call.read(operand, dim)
    _link(call, "reader", other, other_dim)


def _apply_weight(call: Call, dim: int, weight_dim: int) -> None:
    """A layer reads its input; a weight that is an activation itself is silenced like one."""
    _contract(call, "input", dim, "weight", weight_dim)
    if call.trace.live(call["weight"]):
        call.read("weight", weight_dim)

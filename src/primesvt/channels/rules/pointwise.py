"""Element-wise operators equate aligned axes; factories make fresh ones."""

from __future__ import annotations

from itertools import zip_longest

from primesvt.channels.equate import equate
from primesvt.channels.rules.registry import Axes, Call, rule
from primesvt.channels.symbols import Axis, Symbol, flatten, leaves, mark_summed, size_of, unit

_SUMS = {"aten::add", "aten::add_", "aten::sub", "aten::sub_"}


@rule(
    "pointwise",
    "masked_fill",
    "copy",
    "where",
    "lerp",
    "rsub",
    "hardswish",
    "floor_divide",
    "_prelu_kernel",
    "bernoulli",
)
def pointwise(call: Call) -> Axes:
    axes = call.trace.axes(call.tensors[0])
    for tensor in call.tensors[1:]:
        other = call.trace.axes(tensor)
        if axes != other:
            pairs = zip_longest(reversed(axes), reversed(other))
            axes = [align(call, a, b) for a, b in pairs][::-1]
    return axes


def align(call: Call, a: Axis | None, b: Axis | None) -> Axis:
    if a is None or b is None:
        return a or b or ()
    if size_of(a) != size_of(b):
        return a if size_of(a) > size_of(b) else b
    if size_of(a) == 1 and (_broadcasts(a, b) or _broadcasts(b, a)):
        return b if _broadcasts(a, b) else a  # equal by chance: at other widths it would broadcast
    shortcut = call.name in _SUMS and _made_apart(a, b) and not _one_layer(call, a, b)
    equate(a, b)
    if shortcut:
        mark_summed(s for s in flatten(a) if s.made)
    return a if len(flatten(a)) >= len(flatten(b)) else b


def _broadcasts(axis: Axis, other: Axis) -> bool:
    """Whether an axis of size 1 stands for any size: also one from a view, beside no channel."""
    symbols = flatten(axis)
    if any(s.broadcasts for s in symbols):
        return True
    return all(s.ghost for s in symbols) and not any(s.made or s.ghost for s in flatten(other))


def _made_apart(a: Axis, b: Axis) -> bool:
    """Whether two weights made these axes and no operator has equated them yet."""
    left = {leaf for s in a for leaf in leaves(s)}
    right = {leaf for s in b for leaf in leaves(s)}
    return all(any(s.made for s in side) for side in (left - right, right - left))


def _one_layer(call: Call, a: Axis, b: Axis) -> bool:
    """Whether a single layer made one side from the other, as in ``conv(u) + u``.

    Such a sum is one layer still (its weight plus an identity), not the shortcut of a block.
    """
    return call.trace.one_layer(a, b) or call.trace.one_layer(b, a)


@rule(
    "detach",
    "clone",
    "alias",
    "lift_fresh",
    "lift_fresh_copy",
    "_to_copy",
    "contiguous",
    "fill",
    "zero",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "_conj",
    "resolve_conj",
    "requires_grad",
    "rand_like",
    "randn_like",
    "randint_like",
    "uniform",
    "random",
    "exponential",
)
def same(call: Call) -> Axes:
    return call.trace.axes(call.tensors[0])


@rule(
    "zeros",
    "ones",
    "empty",
    "full",
    "scalar_tensor",
    "empty_strided",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_empty_strided",
    "rand",
    "randn",
    "randint",
)
def constant(call: Call) -> Axes:
    """Fresh axes for a new tensor; if its size was taken from a width, ``verify`` finds out."""
    return [(Symbol(n),) if n != 1 else unit() for n in call.outputs[0].shape]


@rule("normal")
def normal(call: Call) -> Axes | list[Axes]:
    """Drawn with a mean and a deviation for every entry, in place, or for a given size."""
    return pointwise(call) if call.tensors else constant(call)


@rule("native_dropout")
def dropout(call: Call) -> list[Axes]:
    axes = call.axes("input")
    return [axes, list(axes)]


@rule("eye")
def identity(call: Call) -> Axes:
    """One symbol on both axes: an identity matrix without a row and its column is one again."""
    rows, columns = call.outputs[0].shape
    if rows == columns:
        axis: Axis = (Symbol(rows),)
        return [axis, axis]
    return [call.frozen(n, "a matrix that is not square") for n in (rows, columns)]

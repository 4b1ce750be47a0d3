"""Operators that move, split, merge or select axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from primesvt.channels.equate import cut_points, equate
from primesvt.channels.rules.registry import Axes, Call, rule
from primesvt.channels.symbols import Axis, Symbol, flatten, freeze, pin, size_of, unit
from primesvt.channels.views import reshape


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten")
def view(call: Call) -> Axes:
    return reshape(call.axes("self"), call.outputs[0].shape)


@rule("permute")
def permute(call: Call) -> Axes:
    axes = call.axes("self")
    return [axes[d] for d in call.dims("dims", len(axes))]


@rule("transpose", "t", "swapaxes", "numpy_T", "mT")
def transpose(call: Call) -> Axes:
    axes = call.axes("self")
    if len(axes) < 2:
        return axes
    default = (-1, -2) if call.name == "aten::mT" else (0, 1)
    a, b = call.get("dim0", default[0]), call.get("dim1", default[1])
    axes[a], axes[b] = axes[b], axes[a]
    return axes


@rule("unsqueeze")
def unsqueeze(call: Call) -> Axes:
    axes = call.axes("self")
    axes.insert(call["dim"] % (len(axes) + 1), unit())
    return axes


@rule("squeeze")
def squeeze(call: Call) -> Axes:
    axes = call.axes("self")
    dims = call.dims("dim", len(axes))
    return [a for d, a in enumerate(axes) if d not in dims or size_of(a) != 1]


@rule("expand", "broadcast_to")
def expand(call: Call) -> Axes:
    axes = call.axes("self")
    shape = call.outputs[0].shape
    new = len(shape) - len(axes)
    return [
        axes[i - new] if i >= new and size_of(axes[i - new]) == n else (Symbol(n),)
        for i, n in enumerate(shape)
    ]


@rule("repeat")
def repeat(call: Call) -> Axes:
    """Tiling puts the repetition in front: index = repetition * size + old index."""
    axes, counts = call.axes("self"), call["repeats"]
    axes = [(Symbol(1),)] * (len(counts) - len(axes)) + axes
    out: Axes = []
    for axis, count in zip(axes, counts, strict=True):
        if count == 1:
            out.append(axis)
        else:
            front = call.frozen(count, "a repetition count")
            for symbol in flatten(front):
                pin(symbol)
            out.append(front if size_of(axis) == 1 else (*front, *axis))
    return out


@rule("select")
def select(call: Call) -> Axes:
    axes = call.axes("self")
    gone = axes.pop(call["dim"] % len(axes))
    call.freeze(gone, "one index is selected by number")
    _take_apart(gone)
    return axes


@rule("unbind")
def unbind(call: Call) -> list[Axes]:
    axes = call.axes("self")
    gone = axes.pop(call.get("dim", 0) % len(axes))
    call.freeze(gone, "every index is taken out by number")
    _take_apart(gone)
    return [list(axes) for _ in call.outputs]


@rule("stack")
def stack(call: Call) -> Axes:
    axes = call.trace.axes(call.tensors[0])
    for tensor in call.tensors[1:]:
        for a, b in zip(axes, call.trace.axes(tensor), strict=True):
            equate(a, b)
    out = list(axes)
    dim = call.get("dim", 0) % (len(out) + 1)
    out.insert(dim, call.frozen(len(call.tensors), "tensors are stacked"))
    return out


@rule("cat")
def cat(call: Call) -> Axes:
    all_axes = [call.trace.axes(t) for t in call.tensors if t.numel()]
    first = list(all_axes[0])
    dim = call.get("dim", 0) % len(first)
    for axes in all_axes[1:]:
        for d, (a, b) in enumerate(zip(first, axes, strict=True)):
            if d != dim:
                equate(a, b)
    first[dim] = _concatenate([axes[dim] for axes in all_axes])
    return first


def _concatenate(axes: Sequence[Axis]) -> Axis:
    if len(axes) == 1:
        return axes[0]
    whole = Symbol(sum(size_of(a) for a in axes))
    reasons = [s.find().freeze for a in axes for s in flatten(a)]
    if reasons and all(reasons) and reasons[0] is not None:
        freeze((whole,), reasons[0])
        return (whole,)
    edges = list(accumulate(size_of(a) for a in axes))[:-1]
    for part, axis in zip(cut_points(whole, edges), axes, strict=True):
        equate((part,), axis)
    return (whole,)


@rule("split", "chunk", "unsafe_split", "unsafe_chunk")
def split(call: Call) -> list[Axes]:
    """Equal pieces, cut by number: one choice serves all of them."""
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    sizes = [t.shape[dim] for t in call.outputs]
    if len(sizes) > 1 and len(set(sizes)) == 1:
        whole = axes[dim]
        outer, inner = reshape([whole], [len(sizes), sizes[0]])
        call.freeze(outer, "the axis is split into equal pieces")
        _take_apart(outer)
        axes[dim] = inner
        return [list(axes) for _ in sizes]
    return _pieces(call, axes, dim, sizes)


@rule("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(call: Call) -> list[Axes]:
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    return _pieces(call, axes, dim, [t.shape[dim] for t in call.outputs])


def _pieces(call: Call, axes: Axes, dim: int, sizes: Sequence[int]) -> list[Axes]:
    if len(sizes) == 1:
        return [axes]
    if _is_frozen(axes[dim]):
        parts: Sequence[Axis] = [call.frozen(n, "a piece of a frozen axis") for n in sizes]
    else:
        parts = _cut(axes[dim], list(accumulate(sizes))[:-1])
    return [[*axes[:dim], part, *axes[dim + 1 :]] for part in parts]


def _cut(axis: Axis, edges: Sequence[int]) -> list[Axis]:
    flat = flatten(axis)
    if len(flat) == 1:
        return [(part,) for part in cut_points(flat[0], edges)]
    whole = Symbol(size_of(flat))
    equate((whole,), flat)
    return [(part,) for part in cut_points(whole, edges)]


@rule("slice")
def slice_(call: Call) -> Axes:
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    size, kept = size_of(axes[dim]), call.outputs[0].shape[dim]
    if kept == size:
        return axes
    if _is_frozen(axes[dim]) or call.get("step", 1) != 1 or kept == 0:
        call.freeze(axes[dim], "a slice with a step, or of a frozen axis")
        axes[dim] = call.frozen(kept, "a slice")
        return axes
    start = min(max(call.get("start", 0) + (size if call.get("start", 0) < 0 else 0), 0), size)
    edges = [e for e in (start, start + kept) if 0 < e < size]
    parts = _cut(axes[dim], edges)
    stop = start + kept
    chosen, before = [], 0
    for part in parts:
        if start <= before < stop:
            chosen.append(part)
        before += size_of(part)
    axes[dim] = chosen[0] if len(chosen) == 1 else _concatenate(chosen)
    return axes


@rule("constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def pad(call: Call) -> Axes:
    axes = call.axes("self")
    shape = call.outputs[0].shape
    for d, (axis, n) in enumerate(zip(axes, shape, strict=True)):
        if size_of(axis) != n:
            call.freeze(axis, "the axis is padded")
            axes[d] = call.frozen(n, "the axis is padded")
    return axes


def _take_apart(axis: Axis) -> None:
    for symbol in flatten(axis):
        symbol.numbered = True


def _is_frozen(axis: Axis) -> bool:
    return all(s.find().freeze is not None for s in flatten(axis))

"""Operators that move, split, merge or select axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from primesvt.channels.equate import cut_points, equate
from primesvt.channels.rules.registry import Axes, Call, Unlisted, rule
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
    axes = [unit() for _ in counts[len(axes) :]] + axes
    out: Axes = []
    for axis, count in zip(axes, counts, strict=True):
        if count == 1:
            out.append(axis)
        elif all(s.broadcasts for s in flatten(axis)):  # as ``expand`` does
            out.append((Symbol(count),))
        else:
            front = call.frozen(count, "a repetition count")
            for symbol in flatten(front):
                pin(symbol)
            out.append((*front, *axis))
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


@rule("glu")
def gated(call: Call) -> Axes:
    """One half of an axis times a function of the other: one choice serves both."""
    axes = call.axes("self")
    dim = call.get("dim", -1) % len(axes)
    axes[dim] = _numbered(call, axes[dim], (2,), "the axis is split into equal pieces")
    return axes


@rule("split", "chunk", "unsafe_split", "unsafe_chunk")
def split(call: Call) -> list[Axes]:
    """Equal pieces, cut by number: one choice serves all of them."""
    axes = call.axes("self")
    dim = call.get("dim", 0) % len(axes)
    sizes = [t.shape[dim] for t in call.outputs]
    if len(sizes) > 1 and len(set(sizes)) == 1:
        reason = "the axis is split into equal pieces"
        axes[dim] = _numbered(call, axes[dim], (len(sizes),), reason)
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


@rule(
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
)
def pad(call: Call) -> Axes:
    axes = call.axes("self")
    shape = call.outputs[0].shape
    for d, (axis, n) in enumerate(zip(axes, shape, strict=True)):
        if size_of(axis) != n:
            call.freeze(axis, "the axis is padded")
            axes[d] = call.frozen(n, "the axis is padded")
    return axes


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """``[.., c * r * r, h, w]`` to ``[.., c, h * r, w * r]``: a channel takes its pixels along."""
    *rest, channel, _, _ = call.axes("self")
    factor = call["upscale_factor"]
    channel = _numbered(call, channel, (factor, factor), _PIXELS, behind=True)
    return [*rest, channel, *_frozen_from(call, len(rest) + 1, _PIXELS)]


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Axes:
    *rest, channel, high, wide = call.axes("self")
    call.freeze((*high, *wide), _PIXELS)
    pixels = _counter(call, call["downscale_factor"] ** 2, _PIXELS)
    return [*rest, (*channel, *pixels), *_frozen_from(call, len(rest) + 1, _PIXELS)]


@rule("im2col")
def windows(call: Call) -> Axes:
    """Every channel becomes one for each place of the window; positions are numbered."""
    *rest, channel, high, wide = call.axes("self")
    call.freeze((*high, *wide), _WINDOW)
    places = _counter(call, prod(call["kernel_size"]), _WINDOW)
    return [*rest, (*channel, *places), *_frozen_from(call, len(rest) + 1, _WINDOW)]


@rule("col2im")
def overlapped(call: Call) -> Axes:
    *rest, channel, positions = call.axes("self")
    call.freeze(positions, _WINDOW)
    channel = _numbered(call, channel, (prod(call["kernel_size"]),), _WINDOW, behind=True)
    return [*rest, channel, *_frozen_from(call, len(rest) + 1, _WINDOW)]


@rule("unfold")
def unfold(call: Call) -> Axes:
    axes = call.axes("self")
    dim = call["dimension"] % max(1, len(axes))
    call.freeze(axes[dim], _WINDOW)
    axes[dim] = call.frozen(call.outputs[0].shape[dim], _WINDOW)
    return [*axes, call.frozen(call.outputs[0].shape[-1], _WINDOW)]


@rule("native_channel_shuffle", "channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    first, channel, *rest = call.axes("self")
    count = call["groups"]
    outer, inner = reshape([channel], [count, size_of(channel) // count])
    return [first, (*inner, *outer), *rest]


@rule("grid_sampler_2d", "grid_sampler_3d")
def sampled(call: Call) -> Axes:
    batch, channel, *space = call.axes("input")
    for axis in (*space, *call.axes("grid")[1:]):
        call.freeze(axis, _PIXELS)
    equate(batch, call.axes("grid")[0])
    return [batch, channel, *_frozen_from(call, 2, _PIXELS)]


@rule("diagonal")
def diagonal(call: Call) -> Axes:
    """Entries of equal number on two axes: they go together."""
    axes = call.axes("self")
    a, b = call.get("dim1", 0) % len(axes), call.get("dim2", 1) % len(axes)
    size = call.outputs[0].shape[-1]
    rest = [axis for d, axis in enumerate(axes) if d not in (a, b)]
    if call.get("offset", 0) == 0 and size_of(axes[a]) == size_of(axes[b]):
        equate(axes[a], axes[b])
        return [*rest, axes[a]]
    call.freeze((*axes[a], *axes[b]), "a diagonal beside the main one")
    return [*rest, call.frozen(size, "a diagonal beside the main one")]


@rule("diag_embed")
def diagonal_matrix(call: Call) -> Axes:
    *rest, axis = call.axes("self")
    rank = len(rest) + 2
    places = sorted((call.get("dim1", -2) % rank, call.get("dim2", -1) % rank))
    pair: Axes = [axis, axis]
    if call.get("offset", 0) != 0:
        call.freeze(axis, "a diagonal beside the main one")
        pair = [call.frozen(call.outputs[0].shape[d], "a diagonal") for d in places]
    for d, each in zip(places, pair, strict=True):
        rest.insert(d, each)
    return rest


@rule("as_strided")
def as_strided(call: Call) -> Axes:
    """Axes found again by their size and stride; pooling only changes those of size 1."""
    axes, old = call.axes("self"), call.trace.strides()
    known = {place: axis for place, axis in zip(old, axes, strict=True) if place[0] > 1}
    wanted = list(zip(call["size"], call["stride"], strict=True))
    solid = [place for place in wanted if place[0] > 1]
    if call.get("storage_offset") or sorted(solid) != sorted(known):
        raise Unlisted
    if [place[0] for place in old] == call["size"] and solid == list(known):
        return axes
    return [known[place] if place[0] > 1 else unit() for place in wanted]


_PIXELS = "pixels are moved or mixed"
_WINDOW = "a window slides over the axis"


def _numbered(
    call: Call, axis: Axis, counts: Sequence[int], reason: str, *, behind: bool = False
) -> Axis:
    """Take factors that are numbered off an axis; the rest of it is one choice for all of them."""
    size = size_of(axis) // prod(counts)
    parts = reshape([axis], [size, *counts] if behind else [*counts, size])
    rest = parts.pop(0 if behind else -1)
    for part in parts:
        call.freeze(part, reason)
        _take_apart(part)
    return rest


def _counter(call: Call, size: int, reason: str) -> Axis:
    """A new factor of an axis, which only counts places."""
    axis = call.frozen(size, reason)
    _take_apart(axis)
    for symbol in axis:
        pin(symbol)
    return axis


def _frozen_from(call: Call, start: int, reason: str) -> Axes:
    return [call.frozen(n, reason) for n in call.outputs[0].shape[start:]]


def _take_apart(axis: Axis) -> None:
    for symbol in flatten(axis):
        symbol.numbered = True


def _is_frozen(axis: Axis) -> bool:
    return all(s.find().freeze is not None for s in flatten(axis))

"""Operators that look entries up by number, and those in which the order along an axis matters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch

from primesvt.channels.equate import equate
from primesvt.channels.rules.pointwise import align
from primesvt.channels.rules.registry import Axes, Call, Unlisted, rule
from primesvt.channels.symbols import size_of

_ORDER = "the order along the axis matters"
_NUMBERS = "entries along the axis are looked up by number"


@rule("flip", "roll", "cumsum", "cumprod", "logcumsumexp", "tril", "triu")
def along(call: Call) -> Axes:
    """The order along some axes matters; the others pass."""
    axes = call.axes("self")
    name = "dims" if "dims" in call.arguments else "dim"
    corner = call.name.rstrip("_") in {"aten::tril", "aten::triu"}
    for d in (-1, -2) if corner else call.dims(name, len(axes)):
        call.freeze(axes[d], _ORDER)
        axes[d] = call.frozen(call.outputs[0].shape[d], _ORDER)
    return axes


@rule("sort", "topk", "cummax", "cummin")
def ranked(call: Call) -> list[Axes]:
    """Values, and the numbers of the entries that they come from."""
    axes = call.axes("self")
    if axes:
        dim = call.get("dim", -1) % len(axes)
        call.freeze(axes[dim], _ORDER)
        axes[dim] = call.frozen(call.outputs[0].shape[dim], _ORDER)
    return [axes, list(axes)]


@rule("gather")
def gather(call: Call) -> Axes:
    """Each index picks one entry along one axis; the result has the axes of the index tensor."""
    source, numbers = call.axes("self"), call.axes("index")
    if len(source) != len(numbers) or not source:
        _freeze_all(call, source)
        return numbers
    dim = call["dim"] % len(source)
    call.freeze(source[dim], _NUMBERS)
    _tie(call, source, numbers, dim)
    return numbers


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Axes:
    """What is written has its places by number along one axis; the other axes pass."""
    axes, numbers = call.axes("self"), call.axes("index")
    dim = call["dim"] % max(1, len(axes))
    call.freeze(axes[dim], _NUMBERS)
    call.freeze(numbers[dim], _NUMBERS)
    _tie(call, axes, numbers, dim)
    if isinstance(call.get("src"), torch.Tensor):
        source = call.axes("src")
        call.freeze(source[dim], _NUMBERS)
        _tie(call, source, numbers, dim)
    return axes


def _tie(call: Call, axes: Axes, numbers: Axes, dim: int) -> None:
    """Equate all axes but one; of a longer one, only the entries in front are read."""
    for d, (a, b) in enumerate(zip(axes, numbers, strict=True)):
        if d == dim:
            continue
        if size_of(a) == size_of(b):
            equate(a, b)
        else:
            call.freeze(a, _NUMBERS)
            call.freeze(b, _NUMBERS)


@rule("index_select")
def index_select(call: Call) -> Axes:
    axes, numbers = call.axes("self"), call.axes("index")
    if not axes:
        return axes
    dim = call["dim"] % len(axes)
    call.freeze(axes[dim], _NUMBERS)
    axes[dim] = numbers[0] if numbers else call.frozen(1, _NUMBERS)
    return axes


@rule("index_add", "index_copy", "index_fill")
def index_write(call: Call) -> Axes:
    axes = call.axes("self")
    dim = call["dim"] % max(1, len(axes))
    call.freeze(axes[dim], _NUMBERS)
    source = call.get("source")
    if isinstance(source, torch.Tensor) and source.dim() == len(axes):
        written = call.axes("source")
        call.freeze(written[dim], _NUMBERS)
        for d, (a, b) in enumerate(zip(axes, written, strict=True)):
            if d != dim:
                equate(a, b)
    return axes


@rule("index", "_unsafe_index")
def index(call: Call) -> Axes:
    """``table[numbers]``: the axes of the numbers take the place of the axis that they count."""
    axes, indices = call.axes("self"), call["indices"]
    if not any(_is_mask(i) for i in indices):
        return _looked_up(call, axes, indices)
    taken = _counted(indices)
    _freeze_all(call, [axes[d] for d in taken], *_axes_of(call, indices))
    shape = call.outputs[0].shape
    first, count = _place(taken), len(shape) - (len(axes) - len(taken))
    found = [call.frozen(n, _NUMBERS) for n in shape[first : first + count]]
    rest = [a for d, a in enumerate(axes) if d not in taken]
    return [*rest[:first], *found, *rest[first:]]


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(call: Call) -> Axes:
    axes, indices, values = call.axes("self"), call["indices"], call.axes("values")
    if any(_is_mask(i) for i in indices):
        if len(indices) > 1 or call["values"].numel() != 1:
            raise Unlisted
        marks = call.trace.axes(indices[0])  # one value for all: each entry on its own
        pairs = zip(axes, marks, strict=False)
        return [*(align(call, a, b) for a, b in pairs), *axes[len(marks) :]]
    _freeze_all(call, *_axes_of(call, indices))  # two numbers may write the same entry
    places = _looked_up(call, axes, indices)
    for a, b in zip(reversed(places), reversed(values), strict=False):
        align(call, a, b)
    return axes


def _looked_up(call: Call, axes: Axes, indices: Sequence[torch.Tensor | None]) -> Axes:
    taken = _counted(indices)
    _freeze_all(call, [axes[d] for d in taken])
    numbers: Axes = []
    for each in _axes_of(call, indices):
        pairs = zip_longest(reversed(numbers), reversed(each))
        numbers = [align(call, a, b) for a, b in pairs][::-1]
    rest = [a for d, a in enumerate(axes) if d not in taken]
    first = _place(taken)
    return [*rest[:first], *numbers, *rest[first:]]


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _counted(indices: Sequence[torch.Tensor | None]) -> list[int]:
    """The axes that index tensors stand for; a mask stands for as many as it has."""
    taken: list[int] = []
    d = 0
    for each in indices:
        width = each.dim() if each is not None and _is_mask(each) else 1
        taken += [] if each is None else range(d, d + width)
        d += width
    return taken


def _place(taken: list[int]) -> int:
    """Where the new axes stand: in place of neighbouring ones, else in front."""
    return taken[0] if taken and taken == list(range(taken[0], taken[-1] + 1)) else 0


def _axes_of(call: Call, indices: Sequence[torch.Tensor | None]) -> list[Axes]:
    return [call.trace.axes(each) for each in indices if each is not None]


def _freeze_all(call: Call, *tensors: Axes) -> None:
    for axis in (axis for axes in tensors for axis in axes):
        call.freeze(axis, _NUMBERS)


@rule("bucketize")
def bucketize(call: Call) -> Axes:
    _freeze_all(call, call.axes("boundaries"))
    return call.axes("self") if isinstance(call["self"], torch.Tensor) else []

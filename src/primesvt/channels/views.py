"""Rule of ``view``: the product of symbols that every axis of a reshaped tensor consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from primesvt.channels.equate import split
from primesvt.channels.symbols import Axis, Misfit, Symbol, confirm, flatten, leaves, unit


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """A factor of size 1: its place, and whether a larger factor stands on the same axis."""

    symbol: Symbol
    key: int  # product of the sizes before it
    after_anchor: bool
    sticky: bool


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """The axes of ``tensor.view(shape)``; sizes above 1 are matched exactly, then those of size 1.

    Raises:
        Misfit: the old and the new axes do not nest (``6 x 4`` viewed as ``8 x 3``).
    """
    if prod(shape) == 0:
        raise Misfit("a view of an empty tensor")
    placed = _match_anchors(axes, shape)
    edges = _edges(shape)
    for key, units, targets in _gaps(axes, shape):
        _place(key, units, targets, placed, edges)
    return [tuple(s for _, _, s in sorted(axis, key=lambda e: e[:2])) for axis in placed]


# An entry is (product of sizes before it, 0 for a unit or 1 for an anchor, symbol).
_Entry = tuple[int, int, Symbol]


def _match_anchors(axes: Sequence[Axis], shape: Sequence[int]) -> list[list[_Entry]]:
    stack = [s for axis in reversed(axes) for s in reversed(flatten(axis)) if s.size > 1]
    placed: list[list[_Entry]] = [[] for _ in shape]
    before = 1
    for entries, size in zip(placed, shape, strict=True):
        need = size
        while need > 1:
            x, *tail = (s for s in flatten((stack.pop(),)) if s.size > 1)
            stack.extend(reversed(tail))
            if x.size > need:
                if x.size % need:
                    raise Misfit(f"a view cuts an axis of {x.size} at {need}")
                x, *rest = split(x, need, x.size // need)
                stack.extend(reversed(rest))
            elif need % x.size:
                raise Misfit(f"a view joins axes across a boundary ({x.size} into {need})")
            entries.append((before, 1, x))
            need //= x.size
            before *= x.size
    return placed


def _edges(shape: Sequence[int]) -> list[tuple[int, int]]:
    edges, before = [], 1
    for size in shape:
        edges.append((before, before * size))
        before *= size
    return edges


def _gaps(
    axes: Sequence[Axis], shape: Sequence[int]
) -> Iterator[tuple[int, list[_Unit], list[int]]]:
    """Every position with factors of size 1 before or after, and the new axes of size 1 there."""
    units: dict[int, list[_Unit]] = {}
    before = 1
    for axis in axes:
        behind = False  # a larger factor of this axis
        symbols = flatten(axis)
        for symbol in symbols:
            if symbol.size == 1:
                sticky = any(s.size > 1 for s in symbols)
                one = _Unit(symbol=symbol, key=before, after_anchor=behind, sticky=sticky)
                units.setdefault(before, []).append(one)
            behind = behind or symbol.size > 1
            before *= symbol.size
    targets: dict[int, list[int]] = {}
    for dim, (start, end) in enumerate(_edges(shape)):
        if start == end:
            targets.setdefault(start, []).append(dim)
    for key in sorted({*units, *targets}):
        yield key, units.get(key, []), targets.get(key, [])


def _place(
    key: int,
    units: list[_Unit],
    targets: list[int],
    placed: list[list[_Entry]],
    edges: list[tuple[int, int]],
) -> None:
    loose = [u for u in units if not u.sticky]
    chosen = loose if len(loose) >= len(targets) else units
    alone = sum(not u.symbol.broadcasts for u in units) == 1
    for left in units if not targets else [u for u in units if u not in chosen]:
        _rejoin(left, placed, edges, alone=alone)
    if not targets:
        return
    axes = _merge([(u.symbol,) for u in chosen], len(targets))
    while 0 < len(axes) < len(targets):  # [1] viewed as [1, 1]: a channel becomes head and channel
        at = max((i for i, a in enumerate(axes) if a[-1].find().made), default=len(axes) - 1)
        axes[at : at + 1] = [(s,) for s in split(axes[at][-1], 1, 1)]
    for axis, dim in zip(axes, targets, strict=False):
        placed[dim].extend((key, 0, symbol) for symbol in axis)
    for dim in targets[len(axes) :]:
        placed[dim].append((key, 0, _ghost(key, placed)))


def _merge(axes: list[Axis], count: int) -> list[Axis]:
    """Join neighbouring axes until ``count`` are left; pairs of channel factors first."""
    while count < len(axes):
        made = [all(s.find().made for s in axis) for axis in axes]
        pairs = range(len(axes) - 1)
        best = max(pairs, key=lambda i: (made[i] and made[i + 1], made[i] == made[i + 1], -i))
        axes[best : best + 2] = [(*axes[best], *axes[best + 1])]
    return axes


def _rejoin(
    unit: _Unit, placed: list[list[_Entry]], edges: list[tuple[int, int]], *, alone: bool
) -> None:
    """Keep a factor of size 1 beside its neighbour, inside one of the new axes.

    One that broadcasts is gone with its axis, and so is one that a view made of a channel if it
    does not come back to it: einsum inserts and drops such axes.
    """
    if unit.symbol.broadcasts:
        return
    inside = [d for d, (a, b) in enumerate(edges) if a < unit.key < b]
    left = [d for d, (a, b) in enumerate(edges) if a < b == unit.key]
    right = [d for d, (a, b) in enumerate(edges) if unit.key == a < b]
    leftwards = unit.after_anchor if unit.sticky else bool(left)
    if not unit.sticky and left and right:
        leftwards = _bound_at(placed[left[0]], last=True) == unit.symbol.bound or (
            _bound_at(placed[right[0]], last=False) != unit.symbol.bound
        )
    home = inside or (left if leftwards else right) or left or right
    if home and _at_home(unit.symbol, placed[home[0]]):
        placed[home[0]].append((unit.key, 0, unit.symbol))
        if not unit.sticky and alone:
            confirm(unit.symbol)


def _at_home(symbol: Symbol, entries: list[_Entry]) -> bool:
    """Whether a factor of size 1 stands beside the factor that it was taken from."""
    if not symbol.ghost or symbol.sibling is None:
        return True
    family = set(leaves(symbol.sibling))
    return any(leaf in family for _, _, s in entries for leaf in leaves(s))


def _bound_at(entries: list[_Entry], *, last: bool) -> bool:
    """Whether the anchor at this end of a new axis is a frozen or protected one."""
    anchors = [symbol for _, is_anchor, symbol in sorted(entries, key=lambda e: e[:2]) if is_anchor]
    return anchors[-1 if last else 0].bound


def _ghost(key: int, placed: list[list[_Entry]]) -> Symbol:
    """A new axis of size 1, as a factor of the channel symbol beside it (``8`` -> ``8 x 1``)."""
    for entries in placed:
        for i, (start, is_anchor, symbol) in enumerate(entries):
            leaf = symbol.find()
            if not is_anchor or leaf.parts or leaf.bound:
                continue
            if start * leaf.size == key:
                kept, ghost = split(leaf, leaf.size, 1)
                ghost.sibling = kept
                entries[i] = (start, 1, kept)
                return ghost
    for entries in placed:
        for i, (start, is_anchor, symbol) in enumerate(entries):
            leaf = symbol.find()
            if is_anchor and start == key and not leaf.parts and not leaf.bound:
                ghost, kept = split(leaf, 1, leaf.size)
                ghost.sibling = kept
                entries[i] = (start, 1, kept)
                return ghost
    return unit()[0]

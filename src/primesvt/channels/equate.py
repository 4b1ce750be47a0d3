"""Equating axes: union-find over symbols that split where their factors differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from primesvt.channels.symbols import (
    Axis,
    Join,
    Misfit,
    Symbol,
    flatten,
    freeze,
    leaves,
    mark_made,
    mark_summed,
    pin,
    protect,
    size_of,
)


def _expand(symbol: Symbol, parts: Sequence[Symbol], join: Join) -> None:
    root = symbol.find()
    root.parts, root.join = tuple(parts), join
    for part in parts:
        target = part.find()
        target.freeze = target.freeze or root.freeze
        target.protected = target.protected or root.protected
        target.pinned = target.pinned or root.pinned
        target.summed = target.summed or root.summed
        target.made = target.made or root.made


def split(symbol: Symbol, *sizes: int) -> Axis:
    """Split a symbol into a row-major product of the given sizes (factors of 1 are ghosts)."""
    root = symbol.find()
    assert prod(sizes) == root.size, (sizes, root.size)
    if root.parts and root.join == "concat":
        return _split_concat(root, *sizes)
    assert not root.parts
    parts = tuple(Symbol(n, ghost=n == 1) for n in sizes)
    _expand(root, parts, "product")
    return parts


def _split_concat(root: Symbol, *sizes: int) -> Axis:
    """``q ++ k ++ v`` viewed as ``[3, d]``: one choice must then serve every part."""
    count = len(root.parts)
    if sizes[0] != count or any(p.size * count != root.size for p in root.parts):
        raise Misfit("a view cuts through a concatenation")
    first, *rest = root.parts
    for part in rest:
        equate((first,), (part,))
    outer = Symbol(count)
    outer.pinned = True
    inner = flatten((first,))
    _expand(root, (outer, *inner), "product")
    if len(sizes) == 2:
        return root.parts
    target = tuple(Symbol(n, ghost=n == 1) for n in sizes[1:])
    equate(inner, target)
    return (outer, *target)


def cut_points(symbol: Symbol, points: Sequence[int]) -> tuple[Symbol, ...]:
    """Split a symbol into a concatenation at the given offsets (0 and size excluded)."""
    root = symbol.find()
    if root.parts and root.join == "product":
        return _cut_product(root, points)
    if not root.parts:
        edges = [0, *points, root.size]
        _expand(root, [Symbol(b - a) for a, b in pairwise(edges)], "concat")
        return root.parts
    parts: list[Symbol] = []
    start = 0
    for part in root.parts:
        inside = [p - start for p in points if start < p < start + part.size]
        parts.extend(cut_points(part, inside) if inside else (part,))
        start += part.size
    root.parts = tuple(parts)
    return root.parts


def _cut_product(root: Symbol, points: Sequence[int]) -> tuple[Symbol, ...]:
    """Cut ``[a, b]`` at multiples of ``b``: the outer factor is cut, whole blocks stay together."""
    outer, *inner = flatten((root,))
    block = size_of(tuple(inner))
    if any(p % block for p in points):
        raise Misfit("a slice cuts through a product of axes")
    pin(outer)
    pieces = cut_points(outer, [p // block for p in points])
    joined = []
    for piece in pieces:
        part = Symbol(piece.size * block)
        _expand(part, (piece, *inner), "product")
        joined.append(part)
    return tuple(joined)


def union(a: Symbol, b: Symbol) -> None:
    """Merge two symbols of one size, with everything known about either."""
    a, b = a.find(), b.find()
    if a is b:
        return
    assert a.size == b.size, (a.size, b.size)
    if b.parts and a.parts:
        _equate_parts(a, b)
        a, b = a.find(), b.find()
        if a is b:
            return
    if b.parts and not a.parts:
        a, b = b, a
    if a.parts and b in leaves(a):
        return
    b.parent = a
    a.ghost = a.ghost and b.ghost
    a.unit = a.unit and b.unit
    a.numbered = a.numbered or b.numbered
    if b.summed or a.summed:
        mark_summed((a,))
    if b.made or a.made:
        mark_made((a,))
    if b.pinned:
        pin(a)
    if b.freeze is not None:
        freeze((a,), b.freeze)
    elif a.freeze is not None:
        freeze((a,), a.freeze)
    if b.protected or a.protected:
        protect((a,), a.protected or b.protected)


def _equate_parts(a: Symbol, b: Symbol) -> None:
    if a.join == b.join == "product":
        equate(a.parts, b.parts)
    elif a.join == b.join == "concat":
        edges = sorted({*_edges(a), *_edges(b)})
        for p, q in zip(cut_points(a, edges), cut_points(b, edges), strict=True):
            union(p, q)
    else:
        whole, pieces = (a, b) if a.join == "product" else (b, a)
        factors = flatten((whole,))
        outer, inner = factors[0], factors[1:]
        if outer.size != len(pieces.parts) or any(
            p.size * outer.size != whole.size for p in pieces.parts
        ):
            raise Misfit("a product of axes meets a concatenation")
        pin(outer)
        for piece in pieces.parts:
            equate((piece,), inner)


def _edges(symbol: Symbol) -> list[int]:
    edges, total = [], 0
    for part in symbol.parts[:-1]:
        total += part.size
        edges.append(total)
    return edges


def equate(left: Axis, right: Axis) -> None:
    """Equate two axes of one size, splitting symbols where their factors differ.

    Raises:
        Misfit: the factors do not nest (``6 x 4`` against ``8 x 3``).
    """
    a, b = list(flatten(left)), list(flatten(right))
    if a == b:
        return
    _level_units(a, b)
    stack_a, stack_b = a[::-1], b[::-1]
    while stack_a and stack_b:
        x, y = stack_a.pop().find(), stack_b.pop().find()
        if _is_product(x) or _is_product(y):
            stack_a.extend(reversed(flatten((x,))))
            stack_b.extend(reversed(flatten((y,))))
        elif x.size == y.size:
            union(x, y)
        elif x.size == 1:
            stack_b.append(y)
        elif y.size == 1:
            stack_a.append(x)
        elif x.size > y.size:
            stack_a.extend(reversed(_split_off(x, y.size)))
            stack_b.append(y)
        else:
            stack_b.extend(reversed(_split_off(y, x.size)))
            stack_a.append(x)


def _is_product(symbol: Symbol) -> bool:
    return bool(symbol.parts) and symbol.join == "product"


def _split_off(symbol: Symbol, size: int) -> Axis:
    if symbol.size % size:
        raise Misfit(f"an axis of {symbol.size} does not divide by {size}")
    return split(symbol, size, symbol.size // size)


def _units(axis: Sequence[Symbol]) -> dict[int, int]:
    """How many factors of size 1 stand at each row-major position (product of sizes before)."""
    at: dict[int, int] = {}
    before = 1
    for symbol in axis:
        if symbol.size == 1:
            at[before] = at.get(before, 0) + 1
        before *= symbol.size
    return at


def _level_units(a: list[Symbol], b: list[Symbol]) -> None:
    """Give both sides the same factors of size 1: ``[8, 1]`` against ``[8]`` splits the 8."""
    units_a, units_b = _units(a), _units(b)
    for poor, have, want in ((a, units_a, units_b), (b, units_b, units_a)):
        for position, count in want.items():
            missing = count - have.get(position, 0)
            left, right = _anchor(a, position), _anchor(b, position)
            shared = left is None or right is None or left.find() is right.find()
            if missing > 0 and not shared:
                _insert_units(poor, position, missing)


def _anchor(axis: Sequence[Symbol], position: int) -> Symbol | None:
    """The symbol that ends at a position, or the one that starts there if none ends."""
    before, starts = 1, None
    for symbol in axis:
        if symbol.size > 1 and before == position:
            starts = symbol
        before *= symbol.size
        if symbol.size > 1 and before == position:
            return symbol
    return starts


def _insert_units(axis: list[Symbol], position: int, count: int) -> None:
    anchor = _anchor(axis, position)
    if anchor is None or anchor.find().parts:
        return
    at = axis.index(anchor)
    ends = prod(s.size for s in axis[: at + 1]) == position
    sizes = [anchor.size, *[1] * count] if ends else [*[1] * count, anchor.size]
    axis[at : at + 1] = split(anchor, *sizes)

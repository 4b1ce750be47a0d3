"""Symbols: the names that the trace gives to tensor axes, and what is known about them.

An *axis* is an ordered product of symbols (row-major, outermost first). A symbol can later turn
out to be a product (``512 = 8 x 64``) or a concatenation (``q ++ k ++ v``) of smaller symbols;
union-find keeps what was equated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

Join = Literal["product", "concat"]


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Why the channels of a symbol cannot be removed."""

    operator: str
    module: str
    reason: str

    def __str__(self) -> str:
        where = f" in module '{self.module}'" if self.module else ""
        return f"{self.reason} ({self.operator}{where})"


class Symbol:
    """A name for a tensor axis or a factor of one; compare by identity after ``find``."""

    __slots__ = (
        "freeze",
        "ghost",
        "join",
        "made",
        "numbered",
        "parent",
        "parts",
        "pinned",
        "protected",
        "sibling",
        "size",
        "summed",
        "unit",
    )

    def __init__(self, size: int, *, ghost: bool = False) -> None:
        self.size = size
        self.parent: Symbol | None = None
        self.parts: tuple[Symbol, ...] = ()
        self.join: Join = "product"
        self.freeze: Freeze | None = None
        self.protected = ""  # "input" or "output" once the symbol reaches one
        self.pinned = False  # selected, sliced, split, stacked, concatenated or reduced
        self.numbered = False  # taken apart index by index (select, unbind, split)
        self.made = False  # the output axis of some weight
        self.summed = False  # the shortcut of a block: a residual stream
        self.unit = False  # born with size 1, to be broadcast
        self.ghost = ghost  # a factor of size 1 that only a view suggests
        self.sibling: Symbol | None = None  # of a ghost: the other factor of its axis

    def find(self) -> Symbol:
        root = self
        while root.parent is not None:
            root = root.parent
        node = self
        while node.parent is not None:
            node.parent, node = root, node.parent
        return root

    @property
    def broadcasts(self) -> bool:
        """True for a factor of size 1 that no weight made: it may stand against any size."""
        root = self.find()
        return root.unit and not root.made

    @property
    def bound(self) -> bool:
        """True if nothing may be removed along this symbol."""
        root = self.find()
        return root.freeze is not None or bool(root.protected)


Axis = tuple[Symbol, ...]


class Misfit(Exception):
    """Two axes, or an axis and a view, do not factor alike."""


def unit() -> Axis:
    """A new axis of size 1, there to be broadcast."""
    symbol = Symbol(1)
    symbol.unit = True
    return (symbol,)


def size_of(axis: Axis) -> int:
    return prod(s.size for s in axis)


def flatten(axis: Axis) -> Axis:
    """The axis as a product of leaves; a concatenation counts as a leaf."""
    if all(s.parent is None and (not s.parts or s.join == "concat") for s in axis):
        return axis
    out: list[Symbol] = []
    for symbol in axis:
        root = symbol.find()
        if root.parts and root.join == "product":
            out.extend(flatten(root.parts))
        else:
            out.append(root)
    return tuple(out)


def leaves(symbol: Symbol) -> Iterable[Symbol]:
    """Every leaf under a symbol, through products and concatenations."""
    root = symbol.find()
    if not root.parts:
        yield root
    for part in root.parts:
        yield from leaves(part)


def freeze(axis: Iterable[Symbol], why: Freeze) -> None:
    """Forbid removal along every symbol; parts made later inherit it."""
    for symbol in axis:
        root = symbol.find()
        if root.freeze is None:
            root.freeze = why
        freeze(root.parts, why)


def protect(axis: Iterable[Symbol], role: str) -> None:
    for symbol in axis:
        root = symbol.find()
        root.protected = root.protected or role
        protect(root.parts, role)


def pin(symbol: Symbol) -> None:
    """Forbid different choices along this symbol (it may still stand in front of a group)."""
    root = symbol.find()
    root.pinned = True
    for part in root.parts:
        pin(part)


def mark_made(axis: Iterable[Symbol]) -> None:
    for symbol in axis:
        root = symbol.find()
        root.made = True
        mark_made(root.parts)


def mark_summed(axis: Iterable[Symbol]) -> None:
    for symbol in axis:
        root = symbol.find()
        root.summed = True
        mark_summed(root.parts)


def confirm(symbol: Symbol) -> None:
    """Mark a factor of size 1 as a real axis, as it took part in a contraction."""
    symbol.find().ghost = False

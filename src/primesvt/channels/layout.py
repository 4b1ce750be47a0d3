"""Layouts: the order of the trace's symbols along a tensor axis, and their coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How channels lie along a tensor axis: a symbol, a product or a concatenation of layouts."""

    kind: Literal["symbol", "product", "concat"]
    symbol: int = -1
    parts: tuple[Layout, ...] = ()

    def length(self, sizes: Mapping[int, int]) -> int:
        if self.kind == "symbol":
            return sizes[self.symbol]
        lengths = [part.length(sizes) for part in self.parts]
        return prod(lengths) if self.kind == "product" else sum(lengths)

    def symbols(self) -> frozenset[int]:
        return self._symbols

    @cached_property
    def _symbols(self) -> frozenset[int]:
        if self.kind == "symbol":
            return frozenset((self.symbol,))
        return frozenset().union(*(part.symbols() for part in self.parts))

    def renumbered(self, symbols: Mapping[int, int]) -> Layout | None:
        """Express the layout in the symbols of another trace; ``None`` where that lacks one.

        Factors without a symbol there are left out: those of size 1 come and go with views.

        Example:
            >>> head, width = (Layout(kind="symbol", symbol=n) for n in (3, 4))
            >>> product = Layout(kind="product", parts=(head, width))
            >>> product.renumbered({4: 7}).symbol, head.renumbered({4: 7})
            (7, None)
        """
        if self.kind == "symbol":
            own = symbols.get(self.symbol)
            return None if own is None else Layout(kind="symbol", symbol=own)
        found = [part.renumbered(symbols) for part in self.parts]
        parts = tuple(part for part in found if part is not None)
        if not parts or (self.kind == "concat" and len(parts) < len(found)):
            return None
        return parts[0] if len(parts) == 1 else Layout(kind=self.kind, parts=parts)

    def leading(self, numbered: Set[int]) -> frozenset[int]:
        """Symbols that stand in front of another one, and factors that are indexed by number."""
        found = frozenset[int]().union(*(part.leading(numbered) for part in self.parts))
        if self.kind == "product":
            counted = [part.symbols() for part in self.parts if part.symbols() - numbered]
            found = found.union(*counted[:-1], self.symbols() & numbered)
        return found

    def tangled(self) -> frozenset[int]:
        """Symbols that occur twice in one product, so that no single choice can be cut."""
        found = frozenset[int]().union(*(part.tangled() for part in self.parts))
        if self.kind == "product":
            for i, part in enumerate(self.parts):
                for other in self.parts[i + 1 :]:
                    found |= part.symbols() & other.symbols()
        return found

    def paths(self, fronts: tuple[int, ...] = ()) -> list[tuple[int, tuple[int, ...]]]:
        """Every occurrence of a symbol, with the symbols in front of it."""
        if self.kind == "symbol":
            return [(self.symbol, fronts)]
        found: list[tuple[int, tuple[int, ...]]] = []
        for part in self.parts:
            found.extend(part.paths(fronts))
            if self.kind == "product" and part.kind == "symbol":
                fronts = (*fronts, part.symbol)
        return found


def coordinates(layout: Layout, sizes: Mapping[int, int]) -> dict[int, npt.NDArray[np.int64]]:
    """The value of every symbol on an axis at each index; -1 where the symbol is absent."""
    if layout.kind == "symbol":
        return {layout.symbol: np.arange(sizes[layout.symbol], dtype=np.int64)}
    lengths = [part.length(sizes) for part in layout.parts]
    total = prod(lengths) if layout.kind == "product" else sum(lengths)
    table: dict[int, npt.NDArray[np.int64]] = {}
    start = 0
    for i, part in enumerate(layout.parts):
        inner = coordinates(part, sizes)
        if layout.kind == "product":
            index = (np.arange(total) // prod(lengths[i + 1 :])) % lengths[i]
            table.update({symbol: values[index] for symbol, values in inner.items()})
        else:
            for symbol, values in inner.items():
                column = table.setdefault(symbol, np.full(total, -1, dtype=np.int64))
                column[start : start + lengths[i]] = values
            start += lengths[i]
    return table

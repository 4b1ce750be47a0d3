"""A heat map as a table: every cell has its figure, the tint only repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cell", "Heat", "Row", "tone"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure: ``tone`` from 0 (as before) to 1 (farthest), ``None`` where there is none.

    ``strong`` is within the limit, ``chosen`` what the plan took, ``text`` what a pointer shows.
    """

    value: str = ""
    tone: float | None = None
    strong: bool = False
    chosen: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of cells; with none it is the heading of a block."""

    name: str
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Columns, rows, and in words what the tints stand for."""

    label: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def holes(self) -> bool:
        """Some cell was not measured."""
        return any(cell.tone is None and not cell.value for row in self.rows for cell in row.cells)

    @property
    def chosen(self) -> bool:
        """Some cell is what the plan took."""
        return any(cell.chosen for row in self.rows for cell in row.cells)


def tone(value: float, values: Sequence[float]) -> float:
    """How strong a tint stands for a value: the root of its share of the largest.

    Roots tell small values apart, which are the ones that matter.

    Example:
        >>> tone(0.25, [0.0, 1.0]), tone(0.0, [0.0])
        (0.5, 0.0)
    """
    largest = max(values, default=0.0)
    return round(max(0.0, value / largest) ** 0.5, 3) if largest > 0 else 0.0

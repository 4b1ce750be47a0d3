"""Axes, points and lines of a plot, with coordinates in percent of its width and height.

A page draws them as SVG with relative positions, so lines and letters keep their size on a phone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Axis", "Mark", "Plot", "Rule", "Segment", "axis"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale from ``low`` to ``high`` with labelled ticks, as ``(percent, label)``."""

    low: float
    high: float
    title: str
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Position of a value in percent of the axis; values outside lie at its ends."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 3)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with a text that a pointer shows, and perhaps a label beside it.

    ``y`` is counted from the top, as SVG does; ``whisker`` holds the ends of an interval.
    """

    x: float
    y: float
    kind: str
    text: str
    label: str = ""
    whisker: tuple[float, float] | None = None

    @property
    def turned(self) -> bool:
        """Whether the label stands left of the point, as there is no room on its right."""
        return self.x > 60


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A straight line between two points."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A horizontal line across the plot, with its label."""

    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot: axes, points, lines, and ``label``, the text that stands for the picture."""

    label: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    segments: tuple[Segment, ...] = ()
    rules: tuple[Rule, ...] = ()


def axis(
    low: float, high: float, *, title: str, unit: str = "%", count: int = 5, tight: bool = False
) -> Axis:
    """An axis that begins and ends at round numbers around ``low`` and ``high``.

    With ``tight`` it ends a little after ``high`` instead, wherever that is.

    Example:
        >>> axis(91.3, 98.9, title="Top-1").ticks
        ((0.0, '90%'), (20.0, '92%'), (40.0, '94%'), (60.0, '96%'), (80.0, '98%'), (100.0, '100%'))
        >>> axis(0, 25, title="Saved", count=2, tight=True).ticks
        ((0.0, '0%'), (76.923, '20%'))
    """
    # The next larger of 1, 2, 2.5, 5 times a power of ten; one a little smaller does.
    wanted = (high - low or abs(high) or 1.0) / count
    power: float = 10.0 ** math.floor(math.log10(wanted))
    step = next(s for s in (power * n for n in (1, 2, 2.5, 5, 10)) if s >= wanted * 0.95)
    first = math.floor(low / step + 1e-9)
    last: float = max(math.ceil(high / step - 1e-9), first + 1)
    if tight:
        last = first + (high / step - first or 1.0) * 1.04
    digits = next(n for n in range(16) if abs(step * 10**n - round(step * 10**n)) < 1e-9 * 10**n)
    ticks = tuple(
        (round(100 * number / (last - first), 3), f"{(first + number) * step:.{digits}f}{unit}")
        for number in range(math.floor(last - first + 1e-9) + 1)
    )
    return Axis(low=first * step, high=last * step, title=title, ticks=ticks)

"""Pruning rates where none are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from primesvt.pruning.sensitivity import Grid, kept_count, rates_of

__all__ = ["PERCENTS", "every_width", "usual_rates"]

PERCENTS = tuple(step / 100 for step in range(1, 99))
FINE = ("uniform", "global", "random")  # policies of one rate, which is all that they choose


def usual_rates(policy: str) -> tuple[float, ...]:
    """The pruning rates that are usual for a policy, ascending.

    Example:
        >>> len(usual_rates("uniform")), usual_rates("psvit")[-1], usual_rates("allocate")[-1]
        (98, 0.9, 0.98)
    """
    return PERCENTS if policy in FINE else rates_of(policy)


def every_width(grid: Grid, rates: Sequence[float]) -> Grid:
    """The same group with all widths down to that of the highest rate.

    Example:
        >>> group = Grid(group="fc", positions=1, size=4, parameters=8, widths={2: 0.5})
        >>> every_width(group, (0.5,)).widths
        {3: 0.25, 2: 0.5}
    """
    least = kept_count(grid.size, max(rates))
    return replace(grid, widths={k: 1 - k / grid.size for k in range(grid.size - 1, least - 1, -1)})

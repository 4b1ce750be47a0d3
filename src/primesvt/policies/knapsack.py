"""The cheapest choice of one width per group for every total saving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Knapsack", "Option", "counted_from", "falling"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """A width that a group may take: what it costs, and what it saves."""

    kept: int
    cost: float
    saved: float


class Knapsack:
    """Dynamic programme over groups: least total cost that saves at least so much.

    Exact for costs and savings that add up, on a grid of ``bins`` savings; savings are rounded down
    to it, so a promise is kept. Of equal costs the wider one is taken.

    Args:
        options: for every group its options, at least one each; savings are not negative.
        bins: grid points.

    Example:
        >>> group = [Option(kept=4, cost=0, saved=0), Option(kept=2, cost=1, saved=8)]
        >>> cheap = [Option(kept=4, cost=0, saved=0), Option(kept=2, cost=0.5, saved=8)]
        >>> Knapsack([group, cheap], bins=16).solve(8)
        [4, 2]
    """

    def __init__(self, options: Sequence[Sequence[Option]], *, bins: int = 2000) -> None:
        self.options = [sorted(group, key=lambda option: -option.kept) for group in options]
        self.most = float(sum(max(o.saved for o in group) for group in self.options))
        self.unit = self.most / bins if self.most > 0 else 1.0
        grid = np.arange(bins + 1)
        best: npt.NDArray[np.float64] = np.where(grid == 0, 0.0, np.inf)
        self.choices: list[npt.NDArray[np.int64]] = []
        for group in self.options:
            rows = [
                best[np.maximum(grid - self._steps(option), 0)] + option.cost for option in group
            ]
            table = np.stack(rows)
            self.choices.append(table.argmin(0))
            best = table.min(0)
        self.costs = best

    def solve(self, saving: float) -> list[int]:
        """The width of every group for at least this saving, or as near to it as can be had."""
        reachable = int(np.flatnonzero(np.isfinite(self.costs)).max())
        place = min(int(np.ceil(saving / self.unit - 1e-9)), reachable)
        kept = []
        for group, choices in zip(self.options[::-1], self.choices[::-1], strict=True):
            option = group[int(choices[place])]
            kept.append(option.kept)
            place = max(place - self._steps(option), 0)
        return kept[::-1]

    def _steps(self, option: Option) -> int:
        return int(option.saved / self.unit + 1e-9)


def counted_from(start: Option, option: Option) -> Option:
    """An option counted from another one."""
    return Option(kept=option.kept, cost=option.cost - start.cost, saved=option.saved - start.saved)


def falling(options: Sequence[Option]) -> list[Option]:
    """Options from wide to narrow without cheaper narrow ones: a narrower width costs no less.

    Where it seems to, that is noise of a few hundred inputs, and both count the same.
    """
    found: list[Option] = []
    for option in sorted(options, key=lambda each: -each.kept):
        cost = max(option.cost, found[-1].cost) if found else option.cost
        found.append(Option(kept=option.kept, cost=cost, saved=max(0.0, option.saved)))
    return found

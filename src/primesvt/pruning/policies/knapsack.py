"""Dynamic programming: the cheapest choice of one width per group for every total saving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Knapsack", "Option", "counted_from", "falling"]

# Grid points of the saving and of each need, by how many needs there are: time and memory.
_POINTS = {0: (2000, 0), 1: (1000, 120), 2: (400, 30)}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A width that a group may take: what it costs, and what it saves.

    ``others`` is what it saves of other things, in their own units.
    """

    kept: int
    cost: float
    saved: float
    others: tuple[float, ...] = ()


class Knapsack:
    """The widths of all groups of least total cost that save at least so much, for any saving.

    A dynamic programme over groups.

    Exact for costs and savings that add up, on a grid of ``bins`` savings; savings are rounded down
    to it, so a promise is kept. Of equal costs the wider one is taken.

    Args:
        options: for every group its options, at least one each; savings are not negative.
        bins: grid points; as many as time allows, when not given.
        needs: what must be saved of each of the other things, in any case. On a coarser grid, to
            whose nearest point savings are rounded, as many small ones rounded down would be lost.

    Example:
        >>> group = [Option(kept=4, cost=0, saved=0), Option(kept=2, cost=1, saved=8)]
        >>> cheap = [Option(kept=4, cost=0, saved=0), Option(kept=2, cost=0.5, saved=8)]
        >>> Knapsack([group, cheap], bins=16).solve(8)
        [4, 2]
        >>> slow = [replace(option, others=(option.saved,)) for option in group]
        >>> cheap = [replace(option, others=(0.0,)) for option in cheap]
        >>> Knapsack([slow, cheap], bins=16, needs=[3.0]).solve(8)
        [2, 4]
    """

    def __init__(
        self,
        options: Sequence[Sequence[Option]],
        *,
        bins: int | None = None,
        needs: Sequence[float] = (),
    ) -> None:
        self.options = [sorted(group, key=lambda option: -option.kept) for group in options]
        self.most = float(sum(max(o.saved for o in group) for group in self.options))
        asked = [number for number, need in enumerate(needs) if need > 0]
        usual, steps = _POINTS[len(asked)]
        bins = bins or usual
        self.unit = self.most / bins if self.most > 0 else 1.0
        self._needs = {number: needs[number] / steps for number in asked}
        self._all = (steps,) * len(asked)
        shape = (bins + 1, *(steps + 1 for _ in asked))
        best: npt.NDArray[np.float64] = np.full(shape, np.inf)
        best[(0,) * len(shape)] = 0.0  # [saving, needs...]: least cost of at least so much
        self.choices: list[npt.NDArray[np.int16]] = []
        for group in self.options:
            table = np.stack([best[self._before(option, shape)] + option.cost for option in group])
            self.choices.append(table.argmin(0).astype(np.int16))
            best = table.min(0)
        self.costs = best

    def solve(self, saving: float) -> list[int]:
        """The width of every group for at least this saving, or as near to it as can be had.

        Needs come first; where they cannot all be met, all are lowered alike.
        """
        needs = (0,) * len(self._all)
        for steps in range(max(self._all, default=0), 0, -1):
            lowered = (steps,) * len(self._all)
            if np.isfinite(self.costs[(0, *lowered)]):  # a plan saves that much of each need
                needs = lowered
                break
        met: Any = (slice(None), *needs)
        line = self.costs[met]
        most = int(np.flatnonzero(np.isfinite(line)).max())
        place = (min(max(0, int(np.ceil(saving / self.unit - 1e-9))), most), *needs)
        kept = []
        # Backwards from the last group: each choice says from where on the grid it came.
        for group, choices in zip(self.options[::-1], self.choices[::-1], strict=True):
            option = group[int(choices[place])]
            kept.append(option.kept)
            moved = zip(place, self._steps(option), strict=True)
            place = tuple(max(here - steps, 0) for here, steps in moved)
        return kept[::-1]

    def _before(self, option: Option, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], ...]:
        """Index of the grid points from which an option leads to each grid point.

        Counted from 0 upwards: saving more than is needed is as good as saving just that.
        """
        axes = [
            np.maximum(np.arange(size) - steps, 0)
            for size, steps in zip(shape, self._steps(option), strict=True)
        ]
        return np.ix_(*axes)

    def _steps(self, option: Option) -> tuple[int, ...]:
        """What an option saves of memory and of each need, in grid points."""
        needs = (round(option.others[number] / unit) for number, unit in self._needs.items())
        return (int(option.saved / self.unit + 1e-9), *(max(0, steps) for steps in needs))


def counted_from(start: Option, option: Option) -> Option:
    """An option's cost and savings, as differences from those of another one."""
    return Option(
        kept=option.kept,
        cost=option.cost - start.cost,
        saved=option.saved - start.saved,
        others=tuple(o - s for o, s in zip(option.others, start.others, strict=True)),
    )


def falling(options: Sequence[Option]) -> list[Option]:
    """Options from wide to narrow, with costs raised so that a narrower width costs no less.

    Where it seems to, that is noise of a few hundred inputs, and both count the same.
    """
    found: list[Option] = []
    for option in sorted(options, key=lambda each: -each.kept):
        cost = max(option.cost, found[-1].cost) if found else option.cost
        found.append(replace(option, cost=cost, saved=max(0.0, option.saved)))
    return found

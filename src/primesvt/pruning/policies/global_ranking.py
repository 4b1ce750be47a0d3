"""Global pruning: one ranking of the channels of all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from primesvt.channels.widths import PERCENTS, WidthGrid, every_width
from primesvt.pruning.policies.base import NetworkProbe, PolicyResult
from primesvt.pruning.policies.ladder import NestedPlans, OneParameterPolicy, climb
from primesvt.registry import POLICIES

__all__ = ["Global", "shares_left"]

Costs = npt.NDArray[np.float64]
_TINY = 1e-300


@POLICIES("global")
class Global(OneParameterPolicy):
    """Remove the channels of least worth by one ranking over all groups.

    Costs of removal are made comparable by ``shares_left``; of a group with several positions
    (heads) one channel of each goes at a time, at their mean. A group keeps at least what its grid
    allows.

    The pruning rates are the shares of all channels that a plan may remove.
    """

    rates = PERCENTS
    any_width = True

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Choose the share of all channels that is removed."""
        grids = tuple(map(every_width, grids))
        plans = self.begin(grids, prober)
        if not grids:
            return self.end(plans, None)
        order = _order(grids, prober.removal_costs([grid.group for grid in grids]))
        gone = np.cumsum([grids[place].positions for place in order])
        total = sum(grid.positions * grid.size for grid in grids)

        def at(share: float) -> Mapping[str, int]:
            first = int(np.searchsorted(gone, share * total + 1e-9, side="right"))
            removed = np.bincount(order[:first], minlength=len(grids))
            return {g.group: g.size - int(n) for g, n in zip(grids, removed, strict=True)}

        return self.end(plans, climb(plans, [NestedPlans(rungs=grids[0].rates, at=at)]))


def _order(grids: Sequence[WidthGrid], costs: Mapping[str, Costs]) -> npt.NDArray[np.int64]:
    """The order of removal over all groups: which group loses a channel next, by its place."""
    worths, places = [], []
    for place, grid in enumerate(grids):
        most = grid.size - min(grid.widths, default=grid.size)
        worths.append(shares_left(costs[grid.group]).mean(0)[:most])
        places.append(np.full(most, place))
    ranks = np.argsort(np.concatenate(worths), kind="stable")
    found: npt.NDArray[np.int64] = np.concatenate(places)[ranks]
    return found


def shares_left(costs: Costs) -> Costs:
    """Make the costs of removal comparable between groups, by the rule of LAMP; rows are apart.

    Each cost squared, over the sum of its own and all later squares.

    The scale of a group drops out, the last channel of every row is worth 1, and a channel counts
    as much as it is of what would be left with it.

    Source: LAMP, Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning" (ICLR 2021,
    arXiv 2010.07611), a score of single weights there.

    Example:
        >>> shares_left(np.array([[1.0, 2.0, 2.0]])).round(3).tolist()
        [[0.111, 0.5, 1.0]]
    """
    scaled = costs / np.maximum(costs.max(axis=1, keepdims=True), _TINY)
    squares = np.square(scaled)
    left = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    shares: Costs = squares / np.maximum(left, _TINY)
    return shares

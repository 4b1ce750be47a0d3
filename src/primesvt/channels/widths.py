"""Widths of channel groups: grids, pruning rates, and how many channels a rate keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from primesvt.channels.graph import ChannelGraph, Ids, first_rows

__all__ = [
    "FAR_RATES",
    "PERCENTS",
    "RATES",
    "WidthGrid",
    "Widths",
    "every_width",
    "first_channels",
    "kept_count",
    "widths",
]


RATES = tuple(step / 10 for step in range(1, 10))


# Layers that hardly matter can give nearly all they have where recovery makes up for it.
FAR_RATES = (*RATES, 0.95, 0.98)


@dataclass(frozen=True, kw_only=True)
class WidthGrid:
    """A channel group and the widths that it may take.

    ``widths`` maps channels kept at each position to the pruning rate, from wide to narrow;
    ``rates`` are all pruning rates that were asked for.
    """

    group: str
    positions: int
    size: int
    parameters: int
    widths: Mapping[int, float]
    rates: tuple[float, ...] = ()

    def at(self, rate: float) -> int:
        """The width at a rate, or at the next lower one that the group has."""
        fitting = [kept for kept, own in self.widths.items() if own <= rate + 1e-9]
        return min(fitting, default=self.size)


def first_channels(graph: ChannelGraph, kept: Widths) -> dict[str, Ids]:
    """Cuts that keep the first channels of every group, where only their number matters.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))
        >>> first_channels(trace(net, torch.zeros(1, 2)), {"0": 3})["0"].tolist()
        [[0, 1, 2]]
    """
    return {name: first_rows(graph[name], count) for name, count in kept.items()}


def kept_count(size: int, rate: float) -> int:
    """Channels kept at a pruning rate: ``max(1, floor(size (1 - rate) + 1/2))``, exactly.

    Example:
        >>> [kept_count(15, rate) for rate in (0.1, 0.5, 0.9)], kept_count(2, 0.9)
        ([14, 8, 2], 1)
    """
    return max(1, math.floor(size * (1 - Fraction(str(rate))) + Fraction(1, 2)))


def widths(size: int, rates: Sequence[float], multiple: int = 1) -> dict[int, float]:
    """Widths that pruning rates give: kept channels -> the highest rate that keeps so many.

    With ``multiple`` they are the nearest multiples of it, the larger of two as near.

    Example:
        >>> widths(4, (0.1, 0.2, 0.3, 0.9)), widths(32, (0.1, 0.4, 0.9), multiple=8)
        ({3: 0.3, 1: 0.9}, {16: 0.4, 8: 0.9})
    """
    counts = ((kept_count(size, rate), rate) for rate in sorted(rates))
    found = {multiple * max(1, (2 * k + multiple) // (2 * multiple)): r for k, r in counts}
    return {kept: rate for kept, rate in found.items() if kept < size}


Widths = Mapping[str, int]


PERCENTS = tuple(step / 100 for step in range(1, 99))


def every_width(grid: WidthGrid) -> WidthGrid:
    """A group's grid with every width from the full one down to that of the highest rate.

    Example:
        >>> half = {"widths": {2: 0.5}, "rates": (0.5,)}
        >>> every_width(WidthGrid(group="fc", positions=1, size=4, parameters=8, **half)).widths
        {3: 0.25, 2: 0.5}
    """
    least = kept_count(grid.size, max(grid.rates))
    return replace(grid, widths={k: 1 - k / grid.size for k in range(grid.size - 1, least - 1, -1)})

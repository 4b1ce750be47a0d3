"""How robust each layer is: cut alone, under several pruning rates, and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from primesvt.channels import ChannelGroup
from primesvt.evaluation.evaluator import Progress
from primesvt.profiling.memory import group_parameters
from primesvt.pruning.probe_table import Probe, ProbeTable
from primesvt.pruning.prober import Bench

__all__ = [
    "FAR_RATES",
    "RATES",
    "Grid",
    "Layer",
    "Point",
    "check_probed",
    "check_rates",
    "find_edges",
    "grids_of",
    "kept_count",
    "probe_layers",
    "rates_of",
    "unprobed",
    "widths",
]

RATES = tuple(step / 10 for step in range(1, 10))
# Layers that hardly matter can give nearly all they have where recovery makes up for it.
FAR_RATES = (*RATES, 0.95, 0.98)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pruning rate of a layer: the channels it keeps per position, and how the network did.

    ``probe`` is ``None`` for a rate that was not measured because a higher one is tolerated.
    """

    rate: float
    kept: int
    probe: Probe | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A channel group as the policies see it: its size in parameters, and its probed rates.

    ``points`` have ascending rates and different widths.
    """

    group: str
    positions: int
    size: int
    parameters: int
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A channel group and the widths that it may take.

    ``widths`` maps channels kept at each position to the pruning rate, from wide to narrow.
    """

    group: str
    positions: int
    size: int
    parameters: int
    widths: Mapping[int, float]

    def at(self, rate: float) -> int:
        """The width at a rate, or at the next lower one that the group has."""
        fitting = [kept for kept, own in self.widths.items() if own <= rate + 1e-9]
        return min(fitting, default=self.size)


def kept_count(size: int, rate: float) -> int:
    """Channels that stay: ``max(1, floor(size (1 - rate) + 1/2))``, in exact arithmetic.

    Example:
        >>> [kept_count(15, rate) for rate in (0.1, 0.5, 0.9)], kept_count(2, 0.9)
        ([14, 8, 2], 1)
    """
    return max(1, math.floor(size * (1 - Fraction(str(rate))) + Fraction(1, 2)))


def widths(size: int, rates: Sequence[float], multiple: int = 1) -> dict[int, float]:
    """Kept channels -> the highest rate that gives them, for every rate that removes something.

    With ``multiple`` they are the nearest multiples of it, the larger of two as near.

    Example:
        >>> widths(4, (0.1, 0.2, 0.3, 0.9)), widths(32, (0.1, 0.4, 0.9), multiple=8)
        ({3: 0.3, 1: 0.9}, {16: 0.4, 8: 0.9})
    """
    counts = ((kept_count(size, rate), rate) for rate in sorted(rates))
    found = {multiple * max(1, (2 * k + multiple) // (2 * multiple)): r for k, r in counts}
    return {kept: rate for kept, rate in found.items() if kept < size}


def rates_of(policy: str) -> tuple[float, ...]:
    """The pruning rates that are usual for a policy.

    Example:
        >>> rates_of("prime")[-1], rates_of("allocate")[-1]
        (0.9, 0.98)
    """
    return FAR_RATES if policy == "allocate" else RATES


def check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Ascending, different pruning rates; ``ValueError`` for none, or one outside 0 .. 1."""
    wrong = [rate for rate in rates if not 0 < rate < 1]
    if wrong or not rates:
        named = f"{wrong[0]:g}" if wrong else "none"
        raise ValueError(
            f"pruning rates must lie between 0 and 1, such as 0.1 0.5 0.9; got {named}"
        )
    return tuple(sorted(set(rates)))


def grids_of(
    bench: Bench,
    groups: Sequence[ChannelGroup],
    *,
    rates: Sequence[float] = RATES,
    order: str = "producer",
    multiple: int = 1,
) -> tuple[Grid, ...]:
    """The widths of every group, multiples of ``multiple``, in forward order; none is measured."""
    members = order == "group"
    return tuple(
        Grid(
            group=group.name,
            positions=group.positions,
            size=group.size,
            parameters=group_parameters(bench.model, bench.graph, group, members=members),
            widths=widths(group.size, rates, multiple),
        )
        for group in groups
    )


def probe_layers(
    bench: Bench,
    groups: Sequence[ChannelGroup],
    *,
    rates: Sequence[float] = RATES,
    order: str = "producer",
    multiple: int = 1,
    progress: Progress | None = None,
) -> tuple[Layer, ...]:
    """Probe every group alone on the unpruned network, in forward order.

    Rates that give equal widths share one probe. ``order`` says which parameters make a layer
    large: of the producing layers (``producer``), or of all members (``group``).
    """
    grids = grids_of(bench, groups, rates=rates, order=order, multiple=multiple)
    wanted = [{grid.group: kept} for grid in grids for kept in grid.widths]
    tell = partial(progress, "probing") if progress is not None else lambda *_: None
    probes = iter(bench.probes(wanted, tell=tell))
    return tuple(
        Layer(
            group=grid.group,
            positions=grid.positions,
            size=grid.size,
            parameters=grid.parameters,
            points=tuple(
                Point(rate=rate, kept=kept, probe=next(probes))
                for kept, rate in grid.widths.items()
            ),
        )
        for grid in grids
    )


def find_edges(
    bench: Bench,
    groups: Sequence[ChannelGroup],
    *,
    passes: Callable[[Probe], bool],
    rates: Sequence[float] = RATES,
    order: str = "producer",
    multiple: int = 1,
    progress: Progress | None = None,
) -> tuple[Layer, ...]:
    """The highest rate of every group alone that passes, by halving: accuracy falls with the rate.

    All groups are probed side by side, one rate each in a round, the highest one first. Rates below
    one that passes count as passing and are not measured; of those that do not pass, the layer
    keeps what was measured.
    """
    grids = grids_of(bench, groups, rates=rates, order=order, multiple=multiple)
    between = {grid.group: (0, len(grid.widths)) for grid in grids}
    total, done = sum(len(grid.widths).bit_length() for grid in grids), 0

    def tell(known: int, _: int) -> None:
        if progress is not None:
            progress("probing", done + known, max(done + known, total))

    seen: dict[tuple[str, int], Probe] = {}
    while any(low < high for low, high in between.values()):
        asked = [grid for grid in grids if between[grid.group][0] < between[grid.group][1]]
        middle = {grid.group: _between(*between[grid.group], first=not seen) for grid in asked}
        cuts = [{grid.group: list(grid.widths)[middle[grid.group]]} for grid in asked]
        for grid, probe in zip(asked, bench.probes(cuts, tell=tell), strict=True):
            low, high = between[grid.group]
            place = middle[grid.group]
            seen[grid.group, list(grid.widths)[place]] = probe
            between[grid.group] = (place + 1, high) if passes(probe) else (low, place)
        done += len(asked)
    return tuple(_up_to(grid, between[grid.group][0], seen) for grid in grids)


def unprobed(grids: Sequence[Grid]) -> tuple[Layer, ...]:
    """Layers of which nothing is known but their rates: no group is probed alone."""
    return tuple(_up_to(grid, len(grid.widths), {}) for grid in grids)


def _between(low: int, high: int, *, first: bool) -> int:
    """Where to look next; most groups alone can take the highest rate."""
    return high - 1 if first else (low + high) // 2


def _up_to(grid: Grid, edge: int, seen: Mapping[tuple[str, int], Probe]) -> Layer:
    """A layer with all rates up to an edge, and those beyond it that were measured."""
    points = [
        Point(rate=rate, kept=kept, probe=seen.get((grid.group, kept)))
        for kept, rate in grid.widths.items()
    ]
    return Layer(
        group=grid.group,
        positions=grid.positions,
        size=grid.size,
        parameters=grid.parameters,
        points=tuple(p for n, p in enumerate(points) if n < edge or p.probe is not None),
    )


def check_probed(
    table: ProbeTable,
    groups: Sequence[ChannelGroup],
    rates: Sequence[float],
    multiple: int = 1,
) -> None:
    """Raise ``ValueError`` naming the first layer probe that a table lacks."""
    for group in groups:
        for kept, rate in widths(group.size, rates, multiple).items():
            if table.find({group.name: kept}) is None:
                raise ValueError(
                    f"{table.name} has no probe of {group.name} at rate {rate:g}, and solving "
                    "again makes no new one; let that run finish, ask for its groups and rates, "
                    "or run it with full_curves"
                )

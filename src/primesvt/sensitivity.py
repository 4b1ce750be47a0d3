"""How robust each layer is: cut alone, under several pruning rates, and measured."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels
from primesvt.channels.graph import Ids
from primesvt.evaluation import Measurement, Progress
from primesvt.importance import Evidence, Importance, Scores, keep
from primesvt.memory import group_parameters, parameter_bytes
from primesvt.probes import Cuts, DistanceProbe, Kind, Probe, ProbeTable, Reference
from primesvt.recovery import Recovery

__all__ = [
    "RATES",
    "Bench",
    "Grid",
    "Layer",
    "Point",
    "check_probed",
    "check_rates",
    "grids_of",
    "kept_count",
    "probe_layers",
    "widths",
]

RATES = tuple(step / 10 for step in range(1, 10))
Evaluate = Callable[[nn.Module], Measurement]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pruning rate of a layer: the channels it keeps per position, and how the network did."""

    rate: float
    kept: int
    probe: Probe


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


def widths(size: int, rates: Sequence[float]) -> dict[int, float]:
    """Kept channels -> the highest rate that gives them, for every rate that removes something.

    Example:
        >>> widths(4, (0.1, 0.2, 0.3, 0.9))
        {3: 0.3, 1: 0.9}
    """
    found = {kept_count(size, rate): rate for rate in sorted(rates)}
    return {kept: rate for kept, rate in found.items() if kept < size}


def check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Ascending, different pruning rates; ``ValueError`` for none, or one outside 0 .. 1."""
    wrong = [rate for rate in rates if not 0 < rate < 1]
    if wrong or not rates:
        named = f"{wrong[0]:g}" if wrong else "none"
        raise ValueError(
            f"pruning rates must lie between 0 and 1, such as 0.1 0.5 0.9; got {named}"
        )
    return tuple(sorted(set(rates)))


class Bench:
    """Cuts the unpruned network in exactly the way that is later applied, and measures it.

    Channels are ranked once, on the unpruned network, so a cut is known by how many channels each
    group keeps, and the order of cuts does not matter.

    Args:
        model: the unpruned network; never changed.
        graph: its channel graph.
        evaluate: measures a network; must give the same answer every time.
        table: probes made so far; ``table.reference`` must be there.
        importance: ranks the channels of a group by the evidence.
        evidence: what it may look at; the model and the graph alone, when not given.
        recovery: what is done around every cut; nothing, when not given.
        distance: how far a network's answers are from the unpruned one's, where that is asked for.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: ChannelGraph,
        evaluate: Evaluate,
        table: ProbeTable,
        importance: Importance,
        evidence: Evidence | None = None,
        recovery: Recovery | None = None,
        distance: Callable[[nn.Module], float] | None = None,
    ) -> None:
        assert table.reference is not None
        self.model, self.graph, self.evaluate, self.table = model, graph, evaluate, table
        self.reference: Reference = table.reference
        self.recovery = recovery or Recovery(kind="none")
        self._importance, self._distance = importance, distance
        self._evidence = evidence or Evidence(model=model, graph=graph)
        self._scores: dict[str, Scores] = {}

    def kept(self, group: str, count: int) -> Ids:
        """The channels that a group keeps, ``[positions, count]``."""
        if group not in self._scores:
            self._scores[group] = self._importance(self._evidence, self.graph[group])
        return keep(self._scores[group], count)

    def cut(self, cuts: Cuts) -> nn.Module:
        """A smaller copy of the network, recovered."""
        smaller = copy.deepcopy(self.model)
        kept = {group: self.kept(group, count) for group, count in cuts.items()}
        self.recovery.before(smaller, kept)
        remove_channels(smaller, self.graph, kept)
        self.recovery.after(smaller, kept)
        return smaller

    def probe(self, cuts: Cuts) -> Probe:
        """The stored probe of these cuts, or else a new one, stored before it is returned."""
        found = self.table.find(cuts)
        if found is not None:
            return found
        kind: Kind = "layer" if len(cuts) == 1 else "walk"
        begin = time.monotonic()
        smaller = self.cut(cuts)
        measurement = self.evaluate(smaller)
        probe = _compared(self.reference, measurement, kind, cuts, parameter_bytes(smaller), begin)
        self.table.add(probe)
        return probe

    def distance(self, cuts: Cuts) -> float:
        """Distance of the cut network from the unpruned one, stored before it is returned.

        Where no distance can be had, the drop of the score stands for it.
        """
        if not cuts:
            return 0.0
        if self._distance is None:
            return max(0.0, self.reference.accuracy - self.probe(cuts).accuracy)
        found = self.table.find_distance(cuts)
        if found is None:
            begin = time.monotonic()
            value = self._distance(self.cut(cuts))
            seconds = round(time.monotonic() - begin, 3)
            found = DistanceProbe(cuts=dict(cuts), distance=value, seconds=seconds)
            self.table.add_distance(found)
        return found.distance

    def bytes_saved(self, cuts: Cuts) -> int:
        """Parameter bytes that the cuts free, exactly."""
        first = {group: _first(self.graph[group], count) for group, count in cuts.items()}
        return self.graph.freed(first).parameter_bytes


def _first(group: ChannelGroup, count: int) -> Ids:
    """Any ``count`` channels at every position: which ones does not change the size."""
    return np.tile(np.arange(count, dtype=np.int64), (group.positions, 1))


def grids_of(
    bench: Bench,
    groups: Sequence[ChannelGroup],
    *,
    rates: Sequence[float] = RATES,
    order: str = "producer",
) -> tuple[Grid, ...]:
    """The widths of every group, in forward order; nothing is measured."""
    members = order == "group"
    return tuple(
        Grid(
            group=group.name,
            positions=group.positions,
            size=group.size,
            parameters=group_parameters(bench.model, bench.graph, group, members=members),
            widths=widths(group.size, rates),
        )
        for group in groups
    )


def probe_layers(
    bench: Bench,
    groups: Sequence[ChannelGroup],
    *,
    rates: Sequence[float] = RATES,
    order: str = "producer",
    progress: Progress | None = None,
) -> tuple[Layer, ...]:
    """Probe every group alone on the unpruned network, in forward order.

    Rates that give equal widths share one probe. ``order`` says which parameters make a layer
    large: of the producing layers (``producer``), or of all members (``group``).
    """
    wanted = {group.name: widths(group.size, rates) for group in groups}
    total, done = sum(map(len, wanted.values())), 0
    layers = []
    for group in groups:
        points = []
        for kept, rate in wanted[group.name].items():
            points.append(Point(rate=rate, kept=kept, probe=bench.probe({group.name: kept})))
            done += 1
            if progress is not None:
                progress("probing", done, total)
        parameters = group_parameters(bench.model, bench.graph, group, members=order == "group")
        layers.append(
            Layer(
                group=group.name,
                positions=group.positions,
                size=group.size,
                parameters=parameters,
                points=tuple(points),
            )
        )
    return tuple(layers)


def check_probed(
    table: ProbeTable,
    groups: Sequence[ChannelGroup],
    rates: Sequence[float],
) -> None:
    """Raise ``ValueError`` naming the first layer probe that a table lacks."""
    for group in groups:
        for kept, rate in widths(group.size, rates).items():
            if table.find({group.name: kept}) is None:
                raise ValueError(
                    f"{table.name} has no probe of {group.name} at rate {rate:g}, and solving "
                    "again makes no new one; let that run finish, or ask for its groups and rates"
                )


def _compared(
    reference: Reference,
    after: Measurement,
    kind: Kind,
    cuts: Cuts,
    left: int,
    begin: float,
) -> Probe:
    """Pair the outcomes with those of the unpruned network."""
    before = reference.measurement.outcomes
    probe = Probe(
        kind=kind,
        cuts=dict(cuts),
        accuracy=after.value,
        saving=1 - left / reference.parameter_bytes,
        parameter_bytes=left,
        seconds=round(time.monotonic() - begin, 3),
    )
    if before is None and after.outcomes is None:
        return probe
    if before is None or after.outcomes is None or before.shape != after.outcomes.shape:
        raise ValueError(
            "score gave another number of outcomes for the pruned network than for the original; "
            "it must measure the same samples each time"
        )
    return _paired(probe, before.astype(np.float64), after.outcomes.astype(np.float64))


def _paired(
    probe: Probe,
    before: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    after: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> Probe:
    drop = before - after
    spread = float(drop.std(ddof=1)) if len(drop) > 1 else 0.0
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        lost, gained = int((drop > 0).sum()), int((drop < 0).sum())
        return replace(probe, samples=len(drop), lost=lost, gained=gained)
    return replace(probe, samples=len(drop), deviation=spread)

"""The bench: networks are cut and recovered as they will be in the end, and measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels
from primesvt.channels.graph import Ids
from primesvt.evaluation import DataEvaluator, Measurement
from primesvt.importance import Evidence, Importance, Scores, keep
from primesvt.memory import parameter_bytes
from primesvt.models import SpikingViT
from primesvt.probes import Cuts, DistanceProbe, Kind, Probe, ProbeTable, Reference
from primesvt.recovery import Recovery
from primesvt.together import Together, block_of

__all__ = ["Bench"]

Evaluate = Callable[[nn.Module], Measurement]
TOGETHER = 16  # networks measured together, at most
AT_RISK = 60.0  # seconds of measuring that a kill may cost, where networks are quick enough
MEMORY = 2**30  # bytes that their parameters may take


@dataclass(frozen=True, kw_only=True)
class _Common:
    """A network that others are measured around, and the same before its batch norms followed."""

    cuts: Cuts
    network: SpikingViT
    raw: SpikingViT
    kept: dict[str, Ids]


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
        distance: how far networks' answers are from the unpruned one's, where that is asked for.
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
        distance: Callable[[Together], list[float]] | None = None,
    ) -> None:
        assert table.reference is not None
        self.model, self.graph, self.evaluate, self.table = model, graph, evaluate, table
        self.reference: Reference = table.reference
        self.recovery = recovery or Recovery(kind="none")
        self._importance, self._distance = importance, distance
        self._evidence = evidence or Evidence(model=model, graph=graph)
        self._scores: dict[str, Scores] = {}
        self._block = block_of(model)
        self._last: _Common | None = None
        self._pace: float | None = None  # seconds per network

    def kept(self, group: str, count: int) -> Ids:
        """The channels that a group keeps, ``[positions, count]``."""
        if group not in self._scores:
            self._scores[group] = self._importance(self._evidence, self.graph[group])
        return keep(self._scores[group], count)

    def cut(self, cuts: Cuts) -> nn.Module:
        """A smaller copy of the network, recovered."""
        smaller, kept = self._smaller(cuts)
        if cuts:
            self.recovery.after(Together(networks=[smaller]), [kept])
        return smaller

    def probe(self, cuts: Cuts) -> Probe:
        """The stored probe of these cuts, or else a new one, stored before it is returned."""
        return self.probes([cuts])[0]

    def probes(self, wanted: Sequence[Cuts], *, around: Cuts | None = None) -> list[Probe]:
        """Probes of several cuts; those that are not stored are measured together.

        ``around`` are cuts from which all of them differ in few groups: the blocks in front of a
        difference are run once for all. That changes what it takes, and no bit of the result.
        """
        missing = [cuts for cuts in _different(wanted) if self.table.find(cuts) is None]
        for cuts, together, begin in self._together(missing, around):
            found = self._measure(together)
            seconds = (time.monotonic() - begin) / len(cuts)
            for each, network, measurement in zip(cuts, together.networks, found, strict=True):
                left = parameter_bytes(network)
                self.table.add(_compared(self.reference, measurement, each, left, seconds))
        probes = [self.table.find(cuts) for cuts in wanted]
        return [probe for probe in probes if probe is not None]

    def distance(self, cuts: Cuts) -> float:
        """Distance of the cut network from the unpruned one, stored before it is returned.

        Where no distance can be had, the drop of the score stands for it.
        """
        return self.distances([cuts])[0]

    def distances(self, wanted: Sequence[Cuts], *, around: Cuts | None = None) -> list[float]:
        """Distances of several cuts, as ``probes`` measures them."""
        if self._distance is None:
            probes = self.probes([cuts for cuts in wanted if cuts], around=around)
            drops = iter(max(0.0, self.reference.accuracy - probe.accuracy) for probe in probes)
            return [next(drops) if cuts else 0.0 for cuts in wanted]
        missing = [c for c in _different(wanted) if c and self.table.find_distance(c) is None]
        for cuts, together, begin in self._together(missing, around):
            values = self._distance(together)
            seconds = round((time.monotonic() - begin) / len(cuts), 3)
            for each, value in zip(cuts, values, strict=True):
                self.table.add_distance(
                    DistanceProbe(cuts=dict(each), distance=value, seconds=seconds)
                )
        found = [self.table.find_distance(cuts) for cuts in wanted]
        return [0.0 if probe is None else probe.distance for probe in found]

    def _smaller(
        self, cuts: Cuts, common: nn.Module | None = None, start: int = 0
    ) -> tuple[nn.Module, dict[str, Ids]]:
        """A smaller copy, its batch norms as they were; its first blocks those of ``common``."""
        smaller = copy.deepcopy(self.model)
        kept = {group: self.kept(group, count) for group, count in cuts.items()}
        self.recovery.before(smaller, kept)
        remove_channels(smaller, self.graph, kept)
        if isinstance(smaller, SpikingViT) and isinstance(common, SpikingViT):
            for block in range(min(start, len(common.blocks))):
                smaller.blocks[block] = common.blocks[block]
        return smaller, kept

    def _together(
        self, wanted: Sequence[Cuts], around: Cuts | None
    ) -> Iterator[tuple[list[Cuts], Together, float]]:
        """Recovered networks, some at a time, and when work on them began."""
        alone = len(wanted) < 2 or not isinstance(self.model, SpikingViT)
        around = around or {}
        order = sorted(wanted, key=lambda cuts: self._start(cuts, around))
        while order:
            size, begin = 1 if alone else self._at_once(), time.monotonic()
            part, order = order[:size], order[size:]
            common = None if alone else self._common(around)
            starts = [self._start(cuts, around) for cuts in part]
            shared, raw = (common.network, common.raw) if common else (None, None)
            made = [self._smaller(c, shared, s) for c, s in zip(part, starts, strict=True)]
            together = Together(
                networks=[network for network, _ in made], common=raw, starts=starts
            )
            self.recovery.after(
                together, [kept for _, kept in made], common.kept if common else None
            )
            yield part, replace(together, common=shared), begin
            self._pace = (time.monotonic() - begin) / len(part)

    def _at_once(self) -> int:
        """Networks to measure together: as many as memory allows and a kill may cost."""
        fitting = MEMORY // max(1, self.reference.parameter_bytes)
        if self._pace is not None:
            fitting = min(fitting, int(AT_RISK / max(self._pace, 1e-9)))
        return max(1, min(TOGETHER, fitting))

    def _common(self, cuts: Cuts) -> _Common:
        """The network that others are measured around; the last one is kept."""
        if self._last is None or self._last.cuts != cuts:
            raw, kept = self._smaller(cuts) if cuts else (self.model, {})
            network = self.cut(cuts) if cuts else self.model
            assert isinstance(raw, SpikingViT) and isinstance(network, SpikingViT)
            self._last = _Common(cuts=dict(cuts), network=network, raw=raw, kept=kept)
        return self._last

    def _start(self, cuts: Cuts, around: Cuts) -> int:
        """The first block in which two cut networks differ."""
        differing = {g for g, _ in set(cuts.items()) ^ set(around.items())}
        members = (m.module for group in differing for m in self.graph[group].members)
        return min(map(self._block, members), default=0)

    def _measure(self, together: Together) -> list[Measurement]:
        if isinstance(self.evaluate, DataEvaluator):
            return self.evaluate.together(together)
        return [self.evaluate(network) for network in together.networks]

    def bytes_saved(self, cuts: Cuts) -> int:
        """Parameter bytes that the cuts free, exactly."""
        first = {group: _first(self.graph[group], count) for group, count in cuts.items()}
        return self.graph.freed(first).parameter_bytes


def _first(group: ChannelGroup, count: int) -> Ids:
    """Any ``count`` channels at every position: which ones does not change the size."""
    return np.tile(np.arange(count, dtype=np.int64), (group.positions, 1))


def _different(wanted: Sequence[Cuts]) -> list[Cuts]:
    """Each once, in their order."""
    return list({frozenset(cuts.items()): cuts for cuts in wanted}.values())


def _compared(
    reference: Reference, after: Measurement, cuts: Cuts, left: int, seconds: float
) -> Probe:
    """Pair the outcomes with those of the unpruned network."""
    kind: Kind = "layer" if len(cuts) == 1 else "walk"
    before = reference.measurement.outcomes
    probe = Probe(
        kind=kind,
        cuts=dict(cuts),
        accuracy=after.value,
        saving=1 - left / reference.parameter_bytes,
        parameter_bytes=left,
        seconds=round(seconds, 3),
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

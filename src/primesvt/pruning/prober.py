"""The prober, which cuts, recovers and measures the networks that a policy asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from primesvt._progress import Progress, Stage
from primesvt.channels import ChannelGraph
from primesvt.channels.graph import Ids
from primesvt.channels.widths import Widths, first_channels
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup, interleave
from primesvt.evaluation.evaluator import DataEvaluator, Measurement
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.importance import Criterion, CriterionContext, Scores, removal_costs
from primesvt.models.shared_prefix import VariantBatch
from primesvt.profiling.limits import Limit
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.probe_table import DistanceProbe, Kind, Probe, ProbeTable, Reference
from primesvt.pruning.variants import NETWORKS, VariantBuilder
from primesvt.recovery import Recovery

__all__ = ["Prober"]


Evaluate = Callable[[nn.Module], Measurement]
Tell = Callable[[int, int], None]


class Prober:
    """Builds and measures pruned variants of one network, each only once, and records them.

    Args:
        model: the unpruned network; never changed.
        graph: its channel graph.
        evaluate: measures a network; must give the same answer every time.
        table: probes made so far; ``table.reference`` must be there.
        importance: ranks the channels of a group by the evidence.
        evidence: what it may look at; the model and the graph alone, when not given.
        recovery: what is done around every cut; nothing, when not given.
        distance: how far networks' answers are from the unpruned one's, where that is asked for.
        race: rejects networks early that the gate would not let pass; none, when not given.
        exact: policies are to measure every rate of every layer.
        limits: those beside accuracy and parameter memory, for policies that count them.
        progress: called as ``progress(stage, done, total)``.
        memory: bytes that networks measured together may take, with activations that they share.
        processes: those that measure together. They share the images of a probe, if the evaluator
            deals them out, and deal out whole networks where distances are asked for.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: ChannelGraph,
        evaluate: Evaluate,
        table: ProbeTable,
        importance: Criterion,
        evidence: CriterionContext | None = None,
        recovery: Recovery | None = None,
        distance: Callable[[VariantBatch], list[float]] | None = None,
        race: SequentialTest | None = None,
        exact: bool = False,
        limits: Sequence[Limit] = (),
        progress: Progress | None = None,
        memory: int = NETWORKS,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        assert table.reference is not None
        self.reference: Reference = table.reference
        self.model, self.graph, self.evaluate, self.table = model, graph, evaluate, table
        self.recovery, self.processes = recovery or Recovery(), processes
        self.exact, self.limits, self._progress = exact, limits, progress
        self._importance = importance
        self._evidence = evidence or CriterionContext(model=model, graph=graph)
        self.builder = VariantBuilder(
            model=model,
            graph=graph,
            importance=importance,
            evidence=self._evidence,
            recovery=self.recovery,
            memory=memory,
            processes=processes,
        )
        self._distance, self._test = distance, race

    @property
    def seed(self) -> int:
        """The seed of random draws."""
        return self._evidence.seed

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report how far the search is, with the number of images that its probes took."""
        if self._progress is None:
            return
        images = sum(probe.samples or 0 for probe in self.table)
        early = sum(probe.rejected is not None for probe in self.table)
        parts = [f"{images:,} images seen", *([f"{early} rejected early"] if early else [])]
        self._progress(Stage(stage, detail=", ".join(parts)), done, total)

    def removal_costs(self, groups: Sequence[str]) -> dict[str, Scores]:
        """Costs of removing the channels of groups one after another, ``[positions, size]``."""
        found = self.processes.map_sharded(
            groups,
            lambda name: removal_costs(self._importance, self._evidence, self.graph[name]),
        )
        return dict(zip(groups, found, strict=True))

    def kept(self, group: str, count: int) -> Ids:
        """The channels that a group keeps, ``[positions, count]``."""
        return self.builder.kept(group, count)

    def cut(self, cuts: Widths) -> nn.Module:
        """A pruned and recovered copy of the network."""
        return self.builder.build(cuts)

    def probe(self, cuts: Widths, *, around: Widths | None = None, full: bool = False) -> Probe:
        """Measure one pruned network, unless it is stored, and return its probe."""
        return self.probes([cuts], around=around, full=full)[0]

    def probes(
        self,
        wanted: Sequence[Widths],
        *,
        around: Widths | None = None,
        full: bool = False,
        tell: Tell = lambda *_: None,
    ) -> list[Probe]:
        """Measure several pruned networks, those that are not stored, and return their probes.

        ``around`` are cuts from which all of them differ in few groups: the blocks in front of a
        difference are run once for all. That changes what it takes, and no bit of the result. With
        ``full`` none is rejected early. ``tell`` hears how many of them are known.
        """
        test = None if full else self._test
        missing = [c for c in _different(wanted) if not _answers(self.table.find(c), test)]
        known, begin = len(wanted) - len(missing), time.monotonic()
        tell(known, len(wanted))
        for part, batch in self.builder.build_batches(missing, around):
            found = self._measure(batch, test)
            seconds, begin = (time.monotonic() - begin) / len(part), time.monotonic()
            made: list[Probe] = []
            for cuts, network, measurement in zip(part, batch.networks, found, strict=True):
                left = parameter_bytes(network)
                probe = _compared(self.reference, measurement, cuts, left, seconds)
                if measurement.rejected and test is not None:
                    allowed = test.budget(probe.gained or 0) / test.total
                    probe = replace(probe, rejected=allowed, race_error=test.error)
                made.append(probe)
            self.table.add(*made)  # batch by batch: a kill costs the work of one
            del batch, network  # the next ones are made before these names are bound again
            known += len(part)
            tell(known, len(wanted))
        probes = [self.table.find(cuts) for cuts in wanted]
        return [probe for probe in probes if probe is not None]

    def distance(self, cuts: Widths) -> float:
        """Divergence of a pruned network's answers from the unpruned one's, measured once.

        Where no distance can be had, the drop of the score stands for it.
        """
        return self.distances([cuts])[0]

    def distances(
        self,
        wanted: Sequence[Widths],
        *,
        around: Widths | None = None,
        tell: Tell = lambda *_: None,
    ) -> list[float]:
        """Divergences of several pruned networks, those measured that are not stored."""
        if self._distance is None:
            probes = self.probes(
                [cuts for cuts in wanted if cuts], around=around, tell=tell, full=True
            )
            drops = iter(max(0.0, self.reference.accuracy - probe.accuracy) for probe in probes)
            return [next(drops) if cuts else 0.0 for cuts in wanted]
        missing = [c for c in _different(wanted) if c and self.table.find_distance(c) is None]
        known, begin = len(wanted) - len(missing), time.monotonic()
        tell(known, len(wanted))
        for part, batch in self.builder.build_batches(missing, around, "distance", deal=True):
            values = self._distances_of(batch)
            seconds, begin = (time.monotonic() - begin) / len(part), time.monotonic()
            self.table.add_distance(
                *(
                    DistanceProbe(cuts=dict(cuts), distance=value, seconds=round(seconds, 3))
                    for cuts, value in zip(part, values, strict=True)
                )
            )
            del batch
            known += len(part)
            tell(known, len(wanted))
        found = [self.table.find_distance(cuts) for cuts in wanted]
        return [0.0 if probe is None else probe.distance for probe in found]

    def bytes_saved(self, cuts: Widths) -> int:
        """Exactly how many parameter bytes the cuts free."""
        first = first_channels(self.graph, cuts)
        return self.graph.freed(first).parameter_bytes

    def _distances_of(self, batch: VariantBatch) -> list[float]:
        """Divergences of networks that the processes share out, in the order of their cuts."""
        measure = self._distance
        assert measure is not None
        own = self.processes.gather_calls(lambda: measure(batch) if batch.networks else [])
        return interleave(own)

    def _measure(self, batch: VariantBatch, test: SequentialTest | None) -> list[Measurement]:
        """Measure networks together where images are at hand, else one by one by the score."""
        if isinstance(self.evaluate, DataEvaluator):
            return self.evaluate.together(batch, test, self.reference.measurement.outcomes)
        return [self.evaluate(network) for network in batch.networks]


def _answers(probe: Probe | None, test: SequentialTest | None) -> bool:
    """Whether a stored probe is as good as a new one.

    It is where it was measured in full, or rejected early when no smaller a drop was allowed.
    """
    if probe is None or probe.rejected is None:
        return probe is not None
    if test is None or test.error < (probe.race_error or 0.0):
        return False
    return test.budget(probe.gained or 0) / test.total <= probe.rejected


def _different(wanted: Sequence[Widths]) -> list[Widths]:
    """The same cuts without repetitions, in their order."""
    return list({frozenset(cuts.items()): cuts for cuts in wanted}.values())


def _compared(
    reference: Reference, after: Measurement, cuts: Widths, left: int, seconds: float
) -> Probe:
    """The probe of a measured network: its outcomes, paired with those of the unpruned one."""
    kind: Kind = "layer" if len(cuts) == 1 else "walk"
    before = reference.measurement.outcomes
    if before is not None and after.rejected and after.outcomes is not None:
        before = before[: len(after.outcomes)]  # all see the images in the same order
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
    one, other = before.astype(np.float64), after.outcomes.astype(np.float64)
    drop = one - other
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():  # right or wrong
        lost, gained = int((drop > 0).sum()), int((drop < 0).sum())
        return replace(probe, samples=len(drop), lost=lost, gained=gained)
    spread = float(drop.std(ddof=1)) if len(drop) > 1 else 0.0
    return replace(probe, samples=len(drop), deviation=spread)

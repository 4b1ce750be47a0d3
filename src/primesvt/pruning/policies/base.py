"""What a policy is, which measurements it may ask for, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from primesvt.channels.widths import RATES, WidthGrid, Widths
from primesvt.config import OptionGroup
from primesvt.importance import Scores
from primesvt.profiling.limits import Limit
from primesvt.pruning.gate import AccuracyGate, GateDecision
from primesvt.pruning.probe_table import Layer, Point, Probe
from primesvt.registry import POLICIES

__all__ = [
    "MILDER",
    "LayerCut",
    "Look",
    "NetworkProbe",
    "Policy",
    "PolicyResult",
    "ProbedNetwork",
    "ProbedNetworks",
    "TargetLayer",
    "cuts_of",
    "find_policy",
]


@dataclass(frozen=True, kw_only=True)
class TargetLayer:
    """A probed layer, how much it tolerates, and whether it is a target of pruning.

    Attributes:
        layer: the probed layer.
        tolerated: the points within the accuracy limit, ascending rates.
        best: the tolerated point of the highest benefit score, ``None`` without any.
        benefit: that score, accuracy x memory saving.
        chosen: the layer is a target.
        reason: why not, where it is not.
    """

    layer: Layer
    tolerated: tuple[Point, ...]
    best: Point | None
    benefit: float
    chosen: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerCut:
    """One group's share of a plan: how many channels it had and how many it keeps.

    ``positions`` are its front positions (heads), ``size`` and ``kept`` channels at each of them.

    ``probe`` and ``verdict`` are those of the whole network after this cut and all before it, where
    that network was measured.
    """

    group: str
    positions: int
    size: int
    rate: float
    kept: int
    probe: Probe | None = None
    verdict: GateDecision | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """The cuts that a policy chose, and what it learned on the way.

    Attributes:
        choices: cuts in the order taken.
        refused: measured networks that the gate turned down.
        accuracy_bound: some group got less than its highest rate because of the gate.
        stopped: the policy ended early because the saving was met.
        probe, verdict: the whole network after all cuts; ``None`` without any.
        targets: every layer with its benefit score, from the largest to the smallest, where the
            policy selects by one.
        alternatives: networks, as cuts, from the mildest to the one taken: what to fall back on.
        unconfirmed: why nothing is taken, where images set aside refused even the mildest of them.
    """

    choices: tuple[LayerCut, ...]
    refused: int
    accuracy_bound: bool
    stopped: bool
    probe: Probe | None = None
    verdict: GateDecision | None = None
    targets: tuple[TargetLayer, ...] = ()
    alternatives: tuple[tuple[LayerCut, ...], ...] = ()
    unconfirmed: str = ""

    @classmethod
    def of(
        cls,
        grids: Sequence[WidthGrid],
        probe: Probe,
        verdict: GateDecision,
        *,
        refused: int = 0,
        stopped: bool = False,
    ) -> PolicyResult:
        """The result of a policy that measured one network, or ends with this one.

        Nothing is cut where the gate turned it down.

        Args:
            grids: what every group may take.
            probe: the network.
            verdict: what the gate said of it.
            refused: other networks that the gate turned down.
            stopped: the policy ended early because the saving was met.
        """
        if not verdict.passed:
            return cls(choices=(), refused=refused + 1, accuracy_bound=True, stopped=False)
        cut = [grid for grid in grids if grid.group in probe.cuts]
        choices = tuple(_choice(grid, probe.cuts[grid.group]) for grid in cut)
        return cls(
            choices=choices,
            refused=refused,
            accuracy_bound=refused > 0 and not stopped,
            stopped=stopped,
            probe=probe,
            verdict=verdict,
            alternatives=(choices,),
        )

    @property
    def cuts(self) -> dict[str, int]:
        """Channels that each cut group keeps at each position, in the order taken."""
        return cuts_of(self.choices)


def cuts_of(choices: Iterable[LayerCut]) -> dict[str, int]:
    """Channels that each cut group keeps at each position.

    Example:
        >>> cuts_of([LayerCut(group="fc", positions=1, size=8, rate=0.5, kept=4)])
        {'fc': 4}
    """
    return {choice.group: choice.kept for choice in choices}


RUNGS = 12  # savings that are asked for, from the most to the least
REFINEMENTS = 3  # halvings between the first of them that passes and the one above
MILDER = (0.5, 0.7, 0.8, 0.9, 0.95)  # savings of milder plans, as shares of the best one's


class NetworkProbe(Protocol):
    """The measurements that a policy may ask for; cuts are channels kept per group.

    ``primesvt.pruning.prober.Prober`` is the one of a run.

    Attributes:
        limits: those beside accuracy and parameter memory.
        exact: every rate of every layer is to be measured.
        seed: of draws.
    """

    @property
    def limits(self) -> Sequence[Limit]: ...

    @property
    def exact(self) -> bool: ...

    @property
    def seed(self) -> int: ...

    def distances(
        self,
        wanted: Sequence[Widths],
        *,
        around: Widths | None = None,
        tell: Callable[[int, int], None] = lambda *_: None,
    ) -> list[float]:
        """Measure how far the answers of pruned networks are from the unpruned one's.

        ``around`` are cuts that most of them share; ``tell`` hears how many are known.
        """
        ...

    def probe(self, cuts: Widths, *, around: Widths | None = None) -> Probe:
        """Measure a pruned network on the selection set; it differs little from cuts ``around``."""
        ...

    def probes(
        self, wanted: Sequence[Widths], *, tell: Callable[[int, int], None] = lambda *_: None
    ) -> list[Probe]:
        """Measure several pruned networks on the selection set, those that are not known."""
        ...

    def bytes_saved(self, cuts: Widths) -> int:
        """Parameter bytes that the cuts free."""
        ...

    def removal_costs(self, groups: Sequence[str]) -> Mapping[str, Scores]:
        """Costs of removing the channels of groups one after another, ``[positions, size]``."""
        ...

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report how far the search is."""
        ...


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Base class of pruning policies, which search for cuts within the limits.

    Args:
        gate: decides whether a measured network may be kept.
        target_bytes: stop at this saving of parameter bytes; ``None`` saves as much as the gate
            allows.
        options: the policy's own options, an ``Options`` of its class.

    Class attributes:
        Options: the options with their defaults, checks and help sentences.
        rates: the pruning rates of every layer where the user gives none.
        any_width: it takes any number of channels, not only those of the rates.
        steers: it counts limits on time and membrane potentials on its way.
        measures_distances: it asks for distances of answers.
    """

    gate: AccuracyGate
    target_bytes: int | None = None
    options: OptionGroup = field(default_factory=OptionGroup)

    Options: ClassVar[type[OptionGroup]] = OptionGroup
    rates: ClassVar[tuple[float, ...]] = RATES
    any_width: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    measures_distances: ClassVar[bool] = False

    @classmethod
    def from_config(
        cls, options: Mapping[str, Any], gate: AccuracyGate, target_bytes: int | None = None
    ) -> Self:
        """The policy with options by name; ``ValueError`` for one that it does not have."""
        return cls(gate=gate, target_bytes=target_bytes, options=cls.Options(**options))

    @classmethod
    def needs_curves(cls, options: Mapping[str, Any], *, exact: bool) -> bool:
        """Whether the policy has every layer probed alone at all its rates."""
        return False

    @abstractmethod
    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Choose a width of every group within the limits.

        Args:
            grids: what every group may take, in forward order.
            prober: measures networks.
        """


def find_policy(name: str) -> type[Policy]:
    """A policy by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> find_policy("prime").rates[-1]
        0.9
    """
    found: type[Policy] = POLICIES.find_class(name, Policy)
    return found


@dataclass(frozen=True, kw_only=True)
class ProbedNetwork:
    """A measured network: its cuts, the bytes that they save, and what the gate says."""

    cuts: dict[str, int]
    saved: int
    probe: Probe
    verdict: GateDecision


Look = Callable[[float], "ProbedNetwork | None"]


@dataclass(kw_only=True)
class ProbedNetworks:
    """The networks that a policy has had measured so far, and the search for the best of them.

    Args:
        gate: decides on whole networks.
        prober: measures.
        grids: what every group may take, from the largest group to the smallest.
        needed: bytes to save and no more; ``None`` for as many as the gate allows.
    """

    gate: AccuracyGate
    prober: NetworkProbe
    grids: Sequence[WidthGrid]
    needed: int | None
    passed: list[ProbedNetwork] = field(default_factory=list)
    refused: list[ProbedNetwork] = field(default_factory=list)

    @property
    def limits(self) -> Sequence[Limit]:
        """The limits beside accuracy and parameter memory."""
        return self.prober.limits

    def look(self, kept: Mapping[str, int]) -> ProbedNetwork:
        """The measured network that keeps so many channels per group; measured once."""
        cuts = self.cuts(kept)
        probed = (*self.passed, *self.refused)
        known = next((plan for plan in probed if plan.cuts == cuts), None)
        if known is not None:
            return known
        probe = self.prober.probe(cuts)
        plan = ProbedNetwork(
            cuts=cuts,
            saved=self.prober.bytes_saved(cuts),
            probe=probe,
            verdict=self.gate.judge(probe),
        )
        (self.passed if plan.verdict.passed else self.refused).append(plan)
        self.prober.tell("whole networks", len(self.passed) + len(self.refused), 0)
        return plan

    def bytes_saved(self, kept: Mapping[str, int]) -> int:
        """Parameter bytes that a plan frees."""
        return self.prober.bytes_saved(self.cuts(kept))

    def cuts(self, kept: Mapping[str, int]) -> dict[str, int]:
        """The same widths without groups that lose nothing, the largest group first."""
        wanted = {grid.group: kept.get(grid.group, grid.size) for grid in self.grids}
        return {g.group: wanted[g.group] for g in self.grids if wanted[g.group] < g.size}

    def enough(self, plan: ProbedNetwork) -> bool:
        """Whether a network saves all that was asked for, and the other limits hold."""
        return self.needed is not None and plan.saved >= self.needed and self.holds(plan)

    def holds(self, plan: ProbedNetwork) -> bool:
        """Whether a network holds the limits beside accuracy and parameter memory."""
        return self.shortfall(plan) <= 0

    def shortfall(self, plan: ProbedNetwork) -> float:
        """The largest share that a network lacks of what such a limit needs; 0 where all hold."""
        asked = [limit for limit in self.limits if limit.needed > 0]
        shares = (limit.proved(plan.cuts) / limit.needed for limit in asked)
        return max((max(0.0, 1 - share) for share in shares), default=0.0)

    @staticmethod
    def highest(
        look: Look,
        *,
        low: float,
        high: float,
        key: Callable[[ProbedNetwork], float] = lambda plan: plan.saved,
    ) -> ProbedNetwork | None:
        """The network of the largest saving that passes, searched from ``high`` downwards.

        ``look`` gives the plan of a saving, or ``None`` where it does not pass. No bisection: near
        the limit, whether a network passes is partly chance, and one unlucky refusal would cut off
        all larger savings. ``key`` says which of two plans is the better one.
        """
        best, refused = None, high
        for asked in np.linspace(high, low, RUNGS):
            if (best := look(asked)) is not None:
                break
            refused = asked
        if best is None:
            return None
        passed = asked  # now halve between it and the saving above, which did not pass
        for _ in range(REFINEMENTS if passed < refused else 0):
            middle = (passed + refused) / 2
            plan = look(middle)
            if plan is None:
                refused = middle
            else:
                passed, best = middle, max(best, plan, key=key)
        return best

    def taken(
        self, best: ProbedNetwork | None, alternatives: Iterable[Mapping[str, int]] = ()
    ) -> PolicyResult:
        """The policy's result: the best network found, and milder ones to fall back on."""
        if best is None:
            return PolicyResult(
                choices=(), refused=len(self.refused), accuracy_bound=True, stopped=False
            )
        return PolicyResult(
            choices=self._choices(best.cuts),
            refused=len(self.refused),
            accuracy_bound=bool(self.refused) and not self.enough(best),
            stopped=self.enough(best),
            probe=best.probe,
            verdict=best.verdict,
            alternatives=tuple(map(self._choices, alternatives)),
        )

    def _choices(self, cuts: Mapping[str, int]) -> tuple[LayerCut, ...]:
        return tuple(_choice(grid, cuts[grid.group]) for grid in self.grids if grid.group in cuts)


def _choice(grid: WidthGrid, kept: int) -> LayerCut:
    """One group's cut to so many channels."""
    return LayerCut(
        group=grid.group,
        positions=grid.positions,
        size=grid.size,
        rate=grid.widths[kept],
        kept=kept,
    )

"""What a policy is, what it may have measured, and what it gives back."""

from __future__ import annotations

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
    """A layer as the selection of target layers saw it.

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
    """One cut: the group, its front positions and channels before, and what it keeps of them.

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
    """What a policy took.

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
        """Group -> channels kept at each position, in the order taken."""
        return cuts_of(self.choices)


def cuts_of(choices: Iterable[LayerCut]) -> dict[str, int]:
    """Group -> channels kept at each position.

    Example:
        >>> cuts_of([LayerCut(group="fc", positions=1, size=8, rate=0.5, kept=4)])
        {'fc': 4}
    """
    return {choice.group: choice.kept for choice in choices}


RUNGS = 12  # savings that are asked for, from the most to the least
REFINEMENTS = 3  # halvings between the first of them that passes and the one above
MILDER = (0.5, 0.7, 0.8, 0.9, 0.95)  # savings of milder plans, as shares of the best one's


class NetworkProbe(Protocol):
    """What a policy can have measured; cuts are channels kept per group.

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
        """Distance of each cut network's answers from the unpruned one's.

        ``around`` are cuts that most of them share; ``tell`` hears how many are known.
        """
        ...

    def probe(self, cuts: Widths, *, around: Widths | None = None) -> Probe:
        """The cut network on the selection set; ``around`` are cuts that it differs little from."""
        ...

    def probes(
        self, wanted: Sequence[Widths], *, tell: Callable[[int, int], None] = lambda *_: None
    ) -> list[Probe]:
        """Several cut networks on the selection set; those not yet known are measured together."""
        ...

    def bytes_saved(self, cuts: Widths) -> int:
        """Parameter bytes that the cuts free."""
        ...

    def removal_costs(self, groups: Sequence[str]) -> Mapping[str, Scores]:
        """Costs of removing the channels of groups one after another, ``[positions, size]``."""
        ...

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far the search is."""
        ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Searches for cuts within the limits; a policy extends it and has a name by ``POLICIES``.

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
        """Every layer is probed alone at all its rates."""
        return False

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Choose a width of every group within the limits.

        Args:
            grids: what every group may take, in forward order.
            prober: measures networks.
        """
        raise NotImplementedError


def find_policy(name: str) -> type[Policy]:
    """A policy by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> find_policy("prime").rates[-1]
        0.9
    """
    found: type[Policy] = POLICIES.find(name)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"policy {name!r} is {found!r}; it must extend primesvt.plugins.Policy")
    return found


@dataclass(frozen=True, kw_only=True)
class ProbedNetwork:
    """A network that was looked at: its cuts, what they save, and what the gate says."""

    cuts: dict[str, int]
    saved: int
    probe: Probe
    verdict: GateDecision


Look = Callable[[float], "ProbedNetwork | None"]


def _saved(plan: ProbedNetwork) -> float:
    return plan.saved


@dataclass(kw_only=True)
class ProbedNetworks:
    """The plans looked at so far.

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
        """Those beside accuracy and parameter memory."""
        return self.prober.limits

    def look(self, kept: Mapping[str, int]) -> ProbedNetwork:
        """Measure a network, unless it is known."""
        cuts = self.cuts(kept)
        looked = (*self.passed, *self.refused)
        known = next((plan for plan in looked if plan.cuts == cuts), None)
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

    def cuts(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Only groups that lose something, from the largest to the smallest."""
        wanted = {grid.group: kept.get(grid.group, grid.size) for grid in self.grids}
        return {g.group: wanted[g.group] for g in self.grids if wanted[g.group] < g.size}

    def enough(self, plan: ProbedNetwork) -> bool:
        """All that was asked for is saved."""
        return self.needed is not None and plan.saved >= self.needed and self.holds(plan)

    def holds(self, plan: ProbedNetwork) -> bool:
        """The limits beside accuracy and parameter memory hold."""
        return self.shortfall(plan) <= 0

    def shortfall(self, plan: ProbedNetwork) -> float:
        """The largest share that is missing of what such a limit needs; 0 where all hold."""
        asked = [limit for limit in self.limits if limit.needed > 0]
        shares = (limit.proved(plan.cuts) / limit.needed for limit in asked)
        return max((max(0.0, 1 - share) for share in shares), default=0.0)

    @staticmethod
    def highest(
        look: Look, *, low: float, high: float, key: Callable[[ProbedNetwork], float] = _saved
    ) -> ProbedNetwork | None:
        """The plan of the largest saving that passes, from the most that can be had downwards.

        ``look`` gives the plan of a saving, or ``None`` where it does not pass. No bisection: near
        the limit, whether a network passes is partly chance, and one unlucky refusal would cut off
        all larger savings. ``key`` says which of two plans is the better one.
        """
        refused = high
        for asked in np.linspace(high, low, RUNGS):
            if (plan := look(asked)) is not None:
                return _refined(look, plan, asked, refused, key)
            refused = asked
        return None

    def taken(
        self, best: ProbedNetwork | None, alternatives: Iterable[Mapping[str, int]] = ()
    ) -> PolicyResult:
        """The plan as cuts from the largest group to the smallest."""
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


def _refined(
    look: Look, best: ProbedNetwork, low: float, high: float, key: Callable[[ProbedNetwork], float]
) -> ProbedNetwork:
    """A plan between the first rung that passes and the one above it."""
    for _ in range(REFINEMENTS if low < high else 0):
        middle = (low + high) / 2
        plan = look(middle)
        if plan is None:
            high = middle
        else:
            low, best = middle, max(best, plan, key=key)
    return best


def _choice(grid: WidthGrid, kept: int) -> LayerCut:
    return LayerCut(
        group=grid.group,
        positions=grid.positions,
        size=grid.size,
        rate=grid.widths[kept],
        kept=kept,
    )

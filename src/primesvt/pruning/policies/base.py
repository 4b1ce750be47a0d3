"""What all policies work with: networks probed so far, and the cuts settled on in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from primesvt.channels.widths import WidthGrid, Widths
from primesvt.profiling.limits import LimitOutcome
from primesvt.pruning.gate import AccuracyGate, GateDecision
from primesvt.pruning.probe_table import Layer, Point, Probe

__all__ = [
    "MILDER",
    "LayerCut",
    "Limit",
    "Look",
    "NetworkProbe",
    "PolicyResult",
    "ProbedNetwork",
    "ProbedNetworks",
    "TargetLayer",
    "cuts_of",
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


class Limit(Protocol):
    """So much of something must be saved: of time, of membrane potentials; in its own unit."""

    @property
    def name(self) -> str:
        """What it limits, in words."""
        ...

    @property
    def needed(self) -> float:
        """How much must be saved; nothing where it is not above zero."""
        ...

    def saved(self, cuts: Widths) -> float:
        """Estimate what cuts save, group by group; quick, as a search asks for it often."""
        ...

    def proved(self, cuts: Widths) -> float:
        """What the network with these cuts really saves, measured once."""
        ...

    def at(self, cuts: Widths) -> LimitOutcome:
        """How it stands with these cuts."""
        ...


RUNGS = 12  # savings that are asked for, from the most to the least
REFINEMENTS = 3  # halvings between the first of them that passes and the one above
MILDER = (0.5, 0.7, 0.8, 0.9, 0.95)  # savings of milder plans, as shares of the best one's


class NetworkProbe(Protocol):
    """What a policy can have measured; cuts are channels kept per group."""

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

    def probe(self, cuts: Widths) -> Probe:
        """The cut network on the selection set."""
        ...

    def bytes_saved(self, cuts: Widths) -> int:
        """Parameter bytes that the cuts free."""
        ...


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
        tools: measures.
        grids: what every group may take, from the largest group to the smallest.
        needed: bytes to save and no more; ``None`` for as many as the gate allows.
        limits: those beside accuracy and parameter memory.
        tell: called as ``tell(stage, done, total)``.
    """

    gate: AccuracyGate
    tools: NetworkProbe
    grids: Sequence[WidthGrid]
    needed: int | None
    limits: Sequence[Limit] = ()
    passed: list[ProbedNetwork] = field(default_factory=list)
    refused: list[ProbedNetwork] = field(default_factory=list)
    tell: Callable[[str, int, int], None] = field(default=lambda *_: None)

    def look(self, kept: Mapping[str, int]) -> ProbedNetwork:
        """Measure a network, unless it is known."""
        cuts = self.cuts(kept)
        looked = (*self.passed, *self.refused)
        known = next((plan for plan in looked if plan.cuts == cuts), None)
        if known is not None:
            return known
        probe = self.tools.probe(cuts)
        plan = ProbedNetwork(
            cuts=cuts,
            saved=self.tools.bytes_saved(cuts),
            probe=probe,
            verdict=self.gate.judge(probe),
        )
        (self.passed if plan.verdict.passed else self.refused).append(plan)
        self.tell("whole networks", len(self.passed) + len(self.refused), 0)
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

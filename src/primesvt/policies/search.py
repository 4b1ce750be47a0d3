"""Plans of all groups together: measured around one another, checked whole, made better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from primesvt.policies.gate import Gate, Verdict
from primesvt.policies.knapsack import Knapsack, Option, counted_from, falling
from primesvt.policies.walk import Choice, Walk
from primesvt.probes import Cuts, Probe
from primesvt.sensitivity import Grid

__all__ = ["Candidate", "Search", "Tools", "near", "spread"]

RUNGS = 12  # savings that a round of exchange asks for, from the most to what there is
REFINEMENTS = 3  # halvings between the first of them that passes and the one above
REACH = 2  # neighbouring widths that a round of exchange looks at, on either side
APART = 3  # places between the widths whose curves are measured
MILDER = (0.5, 0.7, 0.8, 0.9, 0.95)  # savings of milder plans, as shares of the best one's


class Tools(Protocol):
    """What a policy can have measured; cuts are channels kept per group."""

    def distances(
        self,
        wanted: Sequence[Cuts],
        *,
        around: Cuts | None = None,
        tell: Callable[[int, int], None] = lambda *_: None,
    ) -> list[float]:
        """Distance of each cut network's answers from the unpruned one's.

        ``around`` are cuts that most of them share; ``tell`` hears how many are known.
        """
        ...

    def probe(self, cuts: Cuts) -> Probe:
        """The cut network on the selection set."""
        ...

    def bytes_saved(self, cuts: Cuts) -> int:
        """Parameter bytes that the cuts free."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network that was looked at: its cuts, what they save, and what the gate says."""

    cuts: dict[str, int]
    saved: int
    probe: Probe
    verdict: Verdict


@dataclass(kw_only=True)
class Search:
    """The plans looked at so far, and how to find better ones; ``Allocate`` says in what order.

    Args:
        gate: decides on whole networks.
        tools: measures.
        grids: what every group may take, from the largest group to the smallest.
        needed: bytes to save and no more; ``None`` for as many as the gate allows.
        tell: called as ``tell(stage, done, total)``.
    """

    gate: Gate
    tools: Tools
    grids: Sequence[Grid]
    needed: int | None
    passed: list[Candidate] = field(default_factory=list)
    refused: list[Candidate] = field(default_factory=list)
    tell: Callable[[str, int, int], None] = field(default=lambda *_: None)

    def alike(self) -> Candidate | None:
        """A network that passes with all groups at one rate.

        The one of the largest saving; of those that save what was asked for, the mildest.
        """
        best = None
        for rate in sorted(self.rates, reverse=True):
            plan = self._look({grid.group: grid.at(rate) for grid in self.grids})
            if best is not None and not self.enough(plan):
                return best
            best = plan if plan.verdict.passed else best
            if best is not None and not self.enough(best):
                return best
        return best

    @property
    def rates(self) -> list[float]:
        """All rates of all grids, ascending."""
        return sorted({rate for grid in self.grids for rate in grid.widths.values()})

    def around(
        self, base: Mapping[str, int], stage: str, widths: Callable[[Grid, int], list[int]]
    ) -> dict[str, list[Option]]:
        """Other widths of every group, all others as in the plan ``base``.

        Costs of widths between measured ones are on the line between them.
        """
        saved = self.tools.bytes_saved(base)
        looked = {g.group: widths(g, base.get(g.group, g.size)) for g in self.grids}
        wanted = [_narrowed(base, grid, kept) for grid in self.grids for kept in looked[grid.group]]
        tell = partial(self.tell, stage)
        costs = iter(self.tools.distances([base, *wanted], around=base, tell=tell))
        center = next(costs)
        found = {}
        for grid in self.grids:
            known = {kept: next(costs) - center for kept in looked[grid.group]}
            options = [
                Option(
                    kept=kept,
                    cost=_between(known, kept),
                    saved=self.tools.bytes_saved(_narrowed(base, grid, kept)) - saved,
                )
                for kept in (grid.size, *grid.widths)
                if min(known) <= kept <= max(known)
            ]
            found[grid.group] = falling([counted_from(options[0], option) for option in options])
        return found

    def climb(
        self, options: Mapping[str, list[Option]], base: Mapping[str, int], least: int
    ) -> Candidate | None:
        """The plan of the largest saving that passes, from the most that can be had downwards.

        No bisection: near the limit, whether a network passes is partly chance, and one unlucky
        refusal would cut off all larger savings.
        """
        knapsack, floor = self._knapsack(options, base)
        low, high = float(least - floor), knapsack.most
        if self.needed is not None:
            high = min(high, float(self.needed - floor))

        def look(asked: float) -> Candidate | None:
            kept = dict(zip(options, knapsack.solve(asked), strict=True))
            plan = self._look({**base, **kept})
            return plan if plan.verdict.passed and plan.saved > least else None

        refused = high
        for asked in np.linspace(high, low, RUNGS):
            if (plan := look(asked)) is not None:
                return self._refined(look, plan, asked, refused)
            refused = asked
        return None

    @staticmethod
    def _refined(
        look: Callable[[float], Candidate | None], best: Candidate, low: float, high: float
    ) -> Candidate:
        """A plan between the first rung that passes and the one above it."""
        for _ in range(REFINEMENTS if low < high else 0):
            middle = (low + high) / 2
            plan = look(middle)
            if plan is None:
                high = middle
            else:
                low, best = middle, max(best, plan, key=lambda each: each.saved)
        return best

    def trade(
        self, options: Mapping[str, list[Option]], base: Mapping[str, int]
    ) -> Candidate | None:
        """A plan of less distance that still saves what was asked for."""
        knapsack, floor = self._knapsack(options, base)
        assert self.needed is not None
        distance = self.tools.distances([base])[0]
        for extra in (1.0, 1.02, 1.05, 1.1):
            asked = extra * (self.needed - floor)
            kept = dict(zip(options, knapsack.solve(asked), strict=True))
            cuts = self._cuts({**base, **kept})
            if self.tools.bytes_saved(cuts) < self.needed:
                continue  # savings of neighbours in one tensor do not quite add up
            plan = self._look(cuts)
            better = plan.verdict.passed and self.tools.distances([plan.cuts])[0] < distance
            return plan if better else None
        return None

    def _knapsack(
        self, options: Mapping[str, list[Option]], base: Mapping[str, int]
    ) -> tuple[Knapsack, int]:
        """The programme over some options, and what their widest widths save already."""
        widest = {name: max(o.kept for o in group) for name, group in options.items()}
        floor = self.tools.bytes_saved(self._cuts({**base, **widest}))
        return Knapsack(list(options.values())), floor

    def enough(self, plan: Candidate) -> bool:
        """All that was asked for is saved."""
        return self.needed is not None and plan.saved >= self.needed

    def _look(self, kept: Mapping[str, int]) -> Candidate:
        cuts = self._cuts(kept)
        looked = (*self.passed, *self.refused)
        known = next((plan for plan in looked if plan.cuts == cuts), None)
        if known is not None:
            return known
        probe = self.tools.probe(cuts)
        plan = Candidate(
            cuts=cuts,
            saved=self.tools.bytes_saved(cuts),
            probe=probe,
            verdict=self.gate.judge(probe),
        )
        (self.passed if plan.verdict.passed else self.refused).append(plan)
        self.tell("whole networks", len(self.passed) + len(self.refused), 0)
        return plan

    def _cuts(self, kept: Mapping[str, int]) -> dict[str, int]:
        """Only groups that lose something, from the largest to the smallest."""
        wanted = {grid.group: kept.get(grid.group, grid.size) for grid in self.grids}
        return {g.group: wanted[g.group] for g in self.grids if wanted[g.group] < g.size}

    def walk(self, best: Candidate | None, curves: Mapping[str, list[Option]]) -> Walk:
        """The plan as cuts from the largest group to the smallest."""
        if best is None:
            return Walk(choices=(), refused=len(self.refused), accuracy_bound=True, stopped=False)
        return Walk(
            choices=self._choices(best.cuts),
            refused=len(self.refused),
            accuracy_bound=bool(self.refused) and not self.enough(best),
            stopped=self.enough(best),
            probe=best.probe,
            verdict=best.verdict,
            alternatives=tuple(map(self._choices, self._milder(best, curves))),
        )

    def _milder(
        self, best: Candidate, curves: Mapping[str, list[Option]]
    ) -> list[Mapping[str, int]]:
        """From mild plans to the best one, which in every group removes at least what they do."""
        inside = {
            name: [
                option for option in options if option.kept >= best.cuts.get(name, options[0].kept)
            ]
            for name, options in curves.items()
        }
        knapsack, floor = self._knapsack(inside, {})
        shares = [share * best.saved - floor for share in MILDER]
        found = [dict(zip(curves, knapsack.solve(share), strict=True)) for share in shares]
        unique = {frozenset(kept.items()): self._cuts(kept) for kept in found}
        milder = [cuts for cuts in unique.values() if cuts and cuts != best.cuts]
        return [*sorted(milder, key=self.tools.bytes_saved), best.cuts]

    def _choices(self, cuts: Mapping[str, int]) -> tuple[Choice, ...]:
        """From the largest group to the smallest."""
        return tuple(_choice(grid, cuts[grid.group]) for grid in self.grids if grid.group in cuts)


def _choice(grid: Grid, kept: int) -> Choice:
    return Choice(
        group=grid.group,
        positions=grid.positions,
        size=grid.size,
        rate=grid.widths[kept],
        kept=kept,
    )


def near(grid: Grid, kept: int) -> list[int]:
    """Widths of a group a few places away from one of them, from wide to narrow."""
    widths = [grid.size, *grid.widths]
    place = widths.index(kept)
    return widths[max(0, place - REACH) : place + REACH + 1]


def spread(grid: Grid, _: int) -> list[int]:
    """Every third width of a group from the narrowest on, and the full one."""
    widths = [grid.size, *grid.widths]
    return [k for n, k in enumerate(widths) if n == 0 or (len(widths) - 1 - n) % APART == 0]


def _between(known: Mapping[int, float], kept: int) -> float:
    """The cost of a width on the line between the measured ones beside it."""
    places = sorted(known)
    return float(np.interp(kept, places, [known[place] for place in places]))


def _narrowed(base: Mapping[str, int], grid: Grid, kept: int) -> dict[str, int]:
    """The cuts of a plan with another width of one group."""
    cuts = {**base, grid.group: kept}
    if kept == grid.size:
        del cuts[grid.group]
    return cuts

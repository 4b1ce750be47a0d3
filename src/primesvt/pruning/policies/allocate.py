"""Policy ``allocate``: widths of all groups by dynamic programming on measured sensitivities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from primesvt.channels.widths import FAR_RATES, WidthGrid
from primesvt.config import OptionGroup
from primesvt.profiling.limits import Limit
from primesvt.pruning.policies.base import (
    MILDER,
    NetworkProbe,
    Policy,
    PolicyResult,
    ProbedNetwork,
    ProbedNetworks,
)
from primesvt.pruning.policies.knapsack import Knapsack, Option, counted_from, falling
from primesvt.registry import POLICIES

__all__ = ["Allocate", "Search", "near", "spread"]


LEAST_GAIN = 0.003  # of the parameter bytes, for another round


class AllocateOptions(OptionGroup):
    """Options of ``allocate``."""

    rounds: Annotated[int, Field(ge=0)] = 8
    """Rounds of exchange, at most."""


@POLICIES("allocate")
@dataclass(frozen=True, kw_only=True)
class Allocate(Policy):
    """The widths of all groups that save most within the limits, by dynamic programming.

    First the distance of every group cut alone gives its curve. A dynamic programme over groups
    gives, for any saving, the widths of least total distance, and the largest saving that the gate
    lets pass is taken; if none passes, the highest rate that all groups can take alike. Then come
    rounds of exchange: around the best plan every group is measured a little narrower and wider,
    all others as they are, and the programme is solved again. So a round gives back where that
    hurts and takes where it is free, and distances are added up near a plan that was measured.

    Limits beside accuracy and parameter memory are counted on the way: every plan is one of least
    distance that meets them, as far as accuracy lets.

    Source: tables of errors solved by dynamic programming as in Frantar and Alistarh, "SPDY"
    (arXiv 2201.13096); here of distances measured with recovery, around a plan.
    """

    options: AllocateOptions = field(default_factory=AllocateOptions)

    Options = AllocateOptions
    rates = FAR_RATES
    steers = True
    measures_distances = True

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Choose a width of every grid.

        Raises:
            ValueError: a limit that cannot hold with every group at its narrowest width.
        """
        ordered = sorted(grids, key=lambda grid: -grid.parameters)
        search = Search(gate=self.gate, prober=prober, grids=ordered, needed=self.target_bytes)
        search.check_reach()
        curves = search.around({}, "curves", spread)
        best = search.climb(curves, None) or search.nearest(curves) or search.alike()
        for number in range(self.options.rounds):
            base = best.cuts if best is not None else {}
            options = search.around(base, f"exchange {number + 1}", near)
            better = self._round(search, options, best)
            if better is None or not self._gained(search, best, better):
                best = better or best
                break
            best = better
        return search.result(best, curves)

    @staticmethod
    def _round(
        search: Search, options: dict[str, list[Option]], best: ProbedNetwork | None
    ) -> ProbedNetwork | None:
        """One round of exchange: a better plan than ``best``, or ``None`` where it finds none.

        Better is less distance where enough is saved, else nearer limits, or a larger saving.
        """
        if best is not None and search.enough(best):
            return search.trade(options, best)
        better = search.climb(options, best)
        if better is None and best is not None and not search.holds(best):
            return search.approach(options, best)
        return better

    def _gained(self, search: Search, before: ProbedNetwork | None, after: ProbedNetwork) -> bool:
        """Whether a round improved the plan enough to be worth another."""
        if before is not None and search.enough(before):
            return True
        if before is not None and not search.holds(before):
            return search.shortfall(before) - search.shortfall(after) >= LEAST_GAIN
        gain = after.saved - (before.saved if before is not None else 0)
        return gain >= LEAST_GAIN * self.gate.reference.parameter_bytes


REACH = 2  # neighbouring widths that a round of exchange looks at, on either side
APART = 3  # places between the widths whose curves are measured
CORRECTIONS = 3  # further plans for one saving, where a limit's estimate was too good
SAFE = 0.99  # of what a plan proved
CLEARLY = 0.97  # of what a limit needs: where all that can be cut gives less, it cannot hold
Options = Mapping[str, list[Option]]


@dataclass(kw_only=True)
class Search(ProbedNetworks):
    """The steps of ``Allocate``, each of which finds a better plan than those measured so far.

    ``trust`` is what the last plan that passed proved of each limit's estimate, as a share.
    """

    trust: dict[str, float] = field(default_factory=dict)
    _last: tuple[Options, tuple[float, ...], Knapsack] | None = field(default=None, repr=False)

    def check_reach(self) -> None:
        """Refuse limits that no plan can hold, whatever accuracy allows.

        Raises:
            ValueError: one that does not hold with every group at its narrowest width.
        """
        narrowest = self.cuts(
            {grid.group: min(grid.widths, default=grid.size) for grid in self.grids}
        )
        for limit in self.limits:
            if limit.needed > 0 and limit.proved(narrowest) < CLEARLY * limit.needed:
                raise ValueError(
                    f"max_{limit.name} cannot hold: even with every group that may be cut at the "
                    f"narrowest width that is tried it is {limit.at(narrowest)}; allow more, or let"
                    " more be cut (higher rates, include, include_streams)"
                )

    def alike(self) -> ProbedNetwork | None:
        """The best network that passes with all groups pruned at one rate.

        The one of the largest saving; of those that save what was asked for, the mildest.
        """
        best = None
        for rate in sorted(self.rates, reverse=True):
            plan = self.look({grid.group: grid.at(rate) for grid in self.grids})
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
        self, base: Mapping[str, int], stage: str, widths: Callable[[WidthGrid, int], list[int]]
    ) -> dict[str, list[Option]]:
        """Measure other widths of every group, one group at a time around the plan ``base``.

        Costs of widths between measured ones are on the line between them.
        """
        tried = {g.group: widths(g, base.get(g.group, g.size)) for g in self.grids}
        wanted = [_narrowed(base, grid, kept) for grid in self.grids for kept in tried[grid.group]]
        tell = partial(self.prober.tell, stage)
        costs = iter(self.prober.distances([base, *wanted], around=base, tell=tell))
        center = next(costs)
        found = {}
        for grid in self.grids:
            # Only what a change costs beyond the plan counts, so costs of groups add up around it.
            known = {kept: next(costs) - center for kept in tried[grid.group]}
            measured = sorted(known)
            line = [known[kept] for kept in measured]
            options = []
            for kept in (grid.size, *grid.widths):
                if measured[0] <= kept <= measured[-1]:
                    cuts = _narrowed(base, grid, kept)
                    option = Option(
                        kept=kept,
                        cost=float(np.interp(kept, measured, line)),
                        saved=self.prober.bytes_saved(cuts),
                        others=tuple(limit.saved(cuts) for limit in self.limits),
                    )
                    options.append(option)
            found[grid.group] = falling([counted_from(options[0], option) for option in options])
        return found

    def climb(self, options: Options, best: ProbedNetwork | None) -> ProbedNetwork | None:
        """The plan of the largest saving that passes, of those of least distance for their saving.

        All limits hold there, and it saves more than ``best``, if they hold there too.
        """
        base = best.cuts if best is not None else {}
        least = best.saved if best is not None and self.holds(best) else 0
        knapsack, floor = self._knapsack(options, base)
        low, high = float(max(0, least - floor)), knapsack.most
        if self.needed is not None:
            high = min(high, float(self.needed - floor))

        def look(asked: float) -> ProbedNetwork | None:
            plan = self._within_limits(options, base, asked)
            return plan if plan is not None and plan.saved > least else None

        return self.highest(look, low=low, high=high)

    def nearest(self, options: Options) -> ProbedNetwork | None:
        """The best plan where none holds the limits: of the largest saving, or nearer to them."""
        if not self.limits:
            return None
        knapsack = Knapsack(list(options.values()))

        def look(asked: float) -> ProbedNetwork | None:
            plan = self.look(dict(zip(options, knapsack.solve(asked), strict=True)))
            return plan if plan.verdict.passed and plan.saved > 0 else None

        largest = self.highest(look, low=0.0, high=knapsack.most)
        return self.approach(options, largest) or largest

    def approach(self, options: Options, best: ProbedNetwork | None) -> ProbedNetwork | None:
        """A plan that passes and is nearer to the limits than ``best``, where they do not hold."""
        base = best.cuts if best is not None else {}
        short = self.shortfall(best) if best is not None else 1.0

        def look(share: float) -> ProbedNetwork | None:
            plan = self.look(self._widths(options, base, 0.0, share=share))
            if not plan.verdict.passed or self.shortfall(plan) >= short:
                return None
            self._learn(plan)
            return plan

        return self.highest(look, low=1 - short, high=1.0, key=lambda plan: -self.shortfall(plan))

    def _within_limits(
        self, options: Options, base: Mapping[str, int], asked: float
    ) -> ProbedNetwork | None:
        """A plan that passes and holds the limits, for a saving beside that of ``base``.

        Estimates of what is saved are corrected by what the plan proves; where that is too little,
        another plan is tried.
        """
        for _ in range(1 + CORRECTIONS * bool(self.limits)):
            plan = self.look(self._widths(options, base, asked))
            if not plan.verdict.passed:
                return None
            lowered = self._learn(plan)
            if self.holds(plan):
                return plan
            if not lowered:
                return None
        return None

    def _learn(self, plan: ProbedNetwork) -> bool:
        """Correct the limits' estimates by what a plan proves; whether one was lowered."""
        lowered = False
        for limit in self.limits if plan.cuts else ():
            proved, estimate = limit.proved(plan.cuts), limit.saved(plan.cuts)
            if limit.needed > 0 and proved > 0 and estimate > 0:
                before, self.trust[limit.name] = self.trusted(limit), SAFE * proved / estimate
                lowered |= self.trusted(limit) < before and proved < limit.needed
        return lowered

    def trusted(self, limit: Limit) -> float:
        """The factor by which a limit's estimate is corrected, 1 at first."""
        return self.trust.get(limit.name, 1.0)

    def _widths(
        self, options: Options, base: Mapping[str, int], asked: float, *, share: float = 1.0
    ) -> dict[str, int]:
        """The widths of least distance for a saving beside that of ``base``."""
        knapsack, _ = self._knapsack(options, base, share=share)
        return {**base, **dict(zip(options, knapsack.solve(asked), strict=True))}

    def trade(self, options: Options, best: ProbedNetwork) -> ProbedNetwork | None:
        """A plan of less distance that still saves what was asked for."""
        base = best.cuts
        knapsack, floor = self._knapsack(options, base)
        assert self.needed is not None
        distance = self.prober.distances([base])[0]
        # Savings of neighbours in one tensor do not quite add up: ask for a little more if need be.
        for extra in (1.0, 1.02, 1.05, 1.1):
            asked = extra * (self.needed - floor)
            kept = dict(zip(options, knapsack.solve(asked), strict=True))
            cuts = self.cuts({**base, **kept})
            if self.prober.bytes_saved(cuts) < self.needed:
                continue
            plan = self.look(cuts)
            better = plan.verdict.passed and self.prober.distances([plan.cuts])[0] < distance
            return plan if better and self.holds(plan) else None
        return None

    def _knapsack(
        self, options: Options, base: Mapping[str, int], *, share: float = 1.0
    ) -> tuple[Knapsack, int]:
        """The dynamic programme over some options, and what their widest widths save already.

        ``share`` is how much of each limit's need must be met.
        """
        widest = {name: max(o.kept for o in group) for name, group in options.items()}
        floor = self.cuts({**base, **widest})
        needs = tuple(
            share * limit.needed / self.trusted(limit) - limit.saved(floor) for limit in self.limits
        )
        # Its tables serve every saving; only other options or needs make new ones.
        if self._last is None or self._last[0] is not options or self._last[1] != needs:
            self._last = options, needs, Knapsack(list(options.values()), needs=needs)
        return self._last[2], self.prober.bytes_saved(floor)

    def result(self, best: ProbedNetwork | None, curves: Options) -> PolicyResult:
        """The best plan as the policy's result, with milder ones to fall back on.

        In every group the best one removes at least what they do. They save less of everything:
        limits that the best one holds are no floor for them.
        """
        if best is None:
            return self.taken(None)
        inside = {
            name: [
                option for option in options if option.kept >= best.cuts.get(name, options[0].kept)
            ]
            for name, options in curves.items()
        }
        found = []
        for share in MILDER:
            knapsack, floor = self._knapsack(inside, {}, share=share)
            kept = knapsack.solve(share * best.saved - floor)
            found.append(dict(zip(curves, kept, strict=True)))
        unique = {frozenset(kept.items()): self.cuts(kept) for kept in found}
        milder = [cuts for cuts in unique.values() if cuts and cuts != best.cuts]
        return self.taken(best, [*sorted(milder, key=self.prober.bytes_saved), best.cuts])


def near(grid: WidthGrid, kept: int) -> list[int]:
    """Widths of a group a few places away from one of them, from wide to narrow."""
    widths = [grid.size, *grid.widths]
    place = widths.index(kept)
    return widths[max(0, place - REACH) : place + REACH + 1]


def spread(grid: WidthGrid, _: int) -> list[int]:
    """Every third width of a group from the narrowest on, and the full one."""
    widths = [grid.size, *grid.widths]
    return [k for n, k in enumerate(widths) if n == 0 or (len(widths) - 1 - n) % APART == 0]


def _narrowed(base: Mapping[str, int], grid: WidthGrid, kept: int) -> dict[str, int]:
    """The cuts of a plan with one group at another width."""
    cuts = {**base, grid.group: kept}
    if kept == grid.size:
        del cuts[grid.group]
    return cuts

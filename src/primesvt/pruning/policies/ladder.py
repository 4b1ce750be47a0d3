"""Policies of one parameter: nested plans, each cutting at least what the one before cuts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from primesvt.channels.widths import WidthGrid
from primesvt.pruning.policies.base import (
    MILDER,
    NetworkProbe,
    Policy,
    PolicyResult,
    ProbedNetwork,
    ProbedNetworks,
)

__all__ = ["Found", "NestedPlans", "OneParameterPolicy", "better", "climb"]


@dataclass(frozen=True, kw_only=True)
class NestedPlans:
    """A ladder of plans from the mildest to the hardest, each cutting at least the one before.

    Args:
        rungs: values of the parameter, ascending.
        at: group -> channels kept at a value; no group keeps more at a larger one.

    Example:
        >>> rate = NestedPlans(rungs=(0.25, 0.5), at=lambda rate: {"fc": round(8 * (1 - rate))})
        >>> rate.plan(0), rate.reaching(3, lambda kept: 8 - kept["fc"])
        ({'fc': 6}, {'fc': 4})
    """

    rungs: Sequence[float]
    at: Callable[[float], Mapping[str, int]]

    def plan(self, place: int) -> Mapping[str, int]:
        """The plan at one of the values of the parameter."""
        return self.at(self.rungs[place])

    def reaching(
        self, saving: float, saved: Callable[[Mapping[str, int]], int]
    ) -> Mapping[str, int]:
        """The mildest plan that saves so many bytes, or the hardest there is."""
        places = range(len(self.rungs))
        place = bisect_left(places, saving, key=lambda place: saved(self.plan(place)))
        return self.plan(min(place, len(self.rungs) - 1))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network that passes, and the ladder of nested plans that it is from."""

    plan: ProbedNetwork
    ladder: NestedPlans


class OneParameterPolicy(Policy):
    """A policy whose plans have one parameter, such as one pruning rate for all groups."""

    def begin(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> ProbedNetworks:
        """Begin a search: nothing measured yet, groups by falling size (ties in forward order)."""
        return ProbedNetworks(
            gate=self.gate,
            prober=prober,
            grids=sorted(grids, key=lambda grid: -grid.parameters),
            needed=self.target_bytes,
        )

    def end(self, plans: ProbedNetworks, found: Found | None) -> PolicyResult:
        """End a search: the plan found as a result, with milder ones of its ladder."""
        if plans.needed is not None and plans.needed <= 0:
            return PolicyResult(choices=(), refused=0, accuracy_bound=False, stopped=True)
        if found is None:
            return plans.taken(None)
        # Milder plans of the ladder, each once, then the one found.
        whole = found.plan
        asked = [found.ladder.reaching(part * whole.saved, plans.bytes_saved) for part in MILDER]
        unique = {frozenset(cuts.items()): cuts for cuts in map(plans.cuts, asked)}
        milder = [c for c in unique.values() if c and plans.bytes_saved(c) < whole.saved]
        return plans.taken(whole, [*milder, whole.cuts])


def climb(plans: ProbedNetworks, ladders: Sequence[NestedPlans]) -> Found | None:
    """Search some ladders of nested plans for the largest saving that passes the gate.

    Savings are asked for from the most that any ladder has downwards
    (``ProbedNetworks.highest``); at each the ladders are tried in their order, up to the first
    that passes. Where just so much is needed, all of them are tried there, and the one of the
    least drop is taken.
    """
    saved = plans.bytes_saved
    whole = [ladder for ladder in ladders if ladder.rungs and saved(ladder.plan(-1)) > 0]
    if not whole or (plans.needed is not None and plans.needed <= 0):
        return None
    most = max(saved(ladder.plan(-1)) for ladder in whole)
    least = min(saved(ladder.reaching(1, saved)) for ladder in whole)
    high = most if plans.needed is None else min(most, plans.needed)
    origin: dict[frozenset[tuple[str, int]], NestedPlans] = {}

    def look(asked: float) -> ProbedNetwork | None:
        best: ProbedNetwork | None = None
        for ladder in whole:
            plan = plans.look(ladder.reaching(asked, saved))
            origin.setdefault(frozenset(plan.cuts.items()), ladder)
            if plan.verdict.passed:
                best = better(plans, best, plan)
            if best is not None and asked != plans.needed:
                break
        return best

    best = plans.highest(look, low=min(least, high), high=high)
    if best is None:
        return None
    return Found(plan=best, ladder=origin[frozenset(best.cuts.items())])


def better(plans: ProbedNetworks, one: ProbedNetwork | None, other: ProbedNetwork) -> ProbedNetwork:
    """The better of two networks: of less drop where both save enough, else of larger saving."""
    if one is None:
        return other
    if plans.enough(one) and plans.enough(other):
        return min(one, other, key=lambda plan: plan.verdict.drop)
    return max(one, other, key=lambda plan: plan.saved)

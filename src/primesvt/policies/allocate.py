"""Allocation: the rates of all groups chosen together, from what each costs in smooth distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from primesvt.evaluation.evaluator import Progress
from primesvt.policies.limits import Limit
from primesvt.policies.walk import Walk
from primesvt.pruning.gate import Gate
from primesvt.pruning.policies.allocate import Search, near, spread
from primesvt.pruning.policies.base import Candidate, Tools
from primesvt.pruning.policies.knapsack import Option
from primesvt.pruning.sensitivity import Grid

__all__ = ["Allocate"]

LEAST_GAIN = 0.003  # of the parameter bytes, for another round


@dataclass(kw_only=True)
class Allocate:
    """The best widths of all groups together, as far as the accuracy limit lets.

    First the distance of every group cut alone gives its curve. A dynamic programme over groups
    gives, for any saving, the widths of least total distance, and the largest saving that the gate
    lets pass is taken; if none passes, the highest rate that all groups can take alike. Then come
    rounds of exchange: around the best plan every group is measured a little narrower and wider,
    all others as they are, and the programme is solved again. So a round gives back where that
    hurts and takes where it is free, and distances are added up near a plan that was measured.

    Args:
        gate: decides on whole networks.
        rounds: rounds of exchange, at most.
        stop_at_bytes: what the parameters may take; no more is saved than that.
        limits: those beside accuracy and parameter memory. Every plan is one of least distance that
            meets them, as far as accuracy lets.
        progress: called as ``progress(stage, done, total)``.

    Source: tables of errors solved by dynamic programming as in Frantar and Alistarh, "SPDY"
    (arXiv 2201.13096); here of distances measured with recovery, around a plan.
    """

    gate: Gate
    rounds: int = 8
    stop_at_bytes: int | None = None
    limits: Sequence[Limit] = ()
    progress: Progress | None = field(default=None, repr=False, compare=False)

    def solve(self, grids: Sequence[Grid], tools: Tools) -> Walk:
        """Choose a width of every grid.

        Raises:
            ValueError: a limit that cannot hold with every group at its narrowest width.
        """
        ordered = sorted(grids, key=lambda grid: -grid.parameters)
        search = Search(
            gate=self.gate,
            tools=tools,
            grids=ordered,
            needed=self._needed(),
            limits=self.limits,
            tell=self._tell,
        )
        search.check_reach()
        curves = search.around({}, "curves", spread)
        best = search.climb(curves, None) or search.nearest(curves) or search.alike()
        for number in range(self.rounds):
            base = best.cuts if best is not None else {}
            options = search.around(base, f"exchange {number + 1}", near)
            better = self._round(search, options, best)
            if better is None or not self._gained(search, best, better):
                best = better or best
                break
            best = better
        return search.walk(best, curves)

    @staticmethod
    def _round(
        search: Search, options: dict[str, list[Option]], best: Candidate | None
    ) -> Candidate | None:
        """A better plan: less distance where enough is saved, nearer limits, or a larger saving."""
        if best is not None and search.enough(best):
            return search.trade(options, best)
        better = search.climb(options, best)
        if better is None and best is not None and not search.holds(best):
            return search.approach(options, best)
        return better

    def _gained(self, search: Search, before: Candidate | None, after: Candidate) -> bool:
        """Another round is worth it."""
        if before is not None and search.enough(before):
            return True
        if before is not None and not search.holds(before):
            return search.shortfall(before) - search.shortfall(after) >= LEAST_GAIN
        gain = after.saved - (before.saved if before is not None else 0)
        return gain >= LEAST_GAIN * self.gate.reference.parameter_bytes

    def _needed(self) -> int | None:
        """Bytes to save and no more; ``None`` for as many as the gate allows."""
        if self.stop_at_bytes is None:
            return None
        return self.gate.reference.parameter_bytes - self.stop_at_bytes

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

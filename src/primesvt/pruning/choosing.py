"""The policy that was asked for, at work: from settings and a prober to the cuts it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from primesvt.channels import ChannelGroup
from primesvt.channels.widths import WidthGrid
from primesvt.evaluation.evaluator import Progress
from primesvt.importance import CriterionContext, find_importance, removal_costs
from primesvt.pruning.policies import (
    AccuracyGate,
    Allocate,
    Global,
    PolicyResult,
    Prime,
    Psvit,
    Random,
    Uniform,
    every_width,
)
from primesvt.pruning.policies.base import Limit
from primesvt.pruning.probe_table import Layer
from primesvt.pruning.prober import Prober
from primesvt.pruning.sensitivity import find_edges, grids_of, probe_layers, unprobed
from primesvt.pruning.settings import Settings

__all__ = ["choose"]


def choose(
    prober: Prober,
    groups: Sequence[ChannelGroup],
    *,
    settings: Settings,
    gate: AccuracyGate,
    importance: str,
    seed: int = 0,
    stop_at_bytes: int | None = None,
    limits: Sequence[Limit] = (),
    progress: Progress | None = None,
) -> PolicyResult:
    """What the policy of the settings takes, measured on the bench.

    Args:
        prober: cuts and measures.
        groups: what may be cut, in forward order.
        settings: the policy, its rates and its order.
        gate: decides on whole networks.
        importance: what ranks the channels of the bench.
        seed: of draws.
        stop_at_bytes: what the parameters may take, where no more is to be saved than that.
        limits: those beside accuracy and parameter memory, which ``allocate`` counts.
        progress: called as ``progress(stage, done, total)``.
    """
    asked = _Question(
        prober=prober,
        groups=groups,
        settings=settings,
        common={"gate": gate, "stop_at_bytes": stop_at_bytes, "progress": progress},
        importance=importance,
        seed=seed,
        limits=limits,
    )
    return _POLICIES[settings.policy](asked)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What a policy is asked; ``common`` are gate, limit on the saving and progress."""

    prober: Prober
    groups: Sequence[ChannelGroup]
    settings: Settings
    common: dict[str, Any]
    importance: str
    seed: int
    limits: Sequence[Limit]

    @property
    def grids(self) -> tuple[WidthGrid, ...]:
        """The widths of every group at the rates asked for."""
        return grids_of(self.prober, self.groups, **self.settings.grid)

    @property
    def all_widths(self) -> tuple[WidthGrid, ...]:
        """All widths of every group down to that of the highest rate."""
        return tuple(every_width(grid, self.settings.pruning_rates) for grid in self.grids)

    def layers(self, *, halving: bool) -> tuple[Layer, ...]:
        """Every group cut alone: at all rates, or by halving up to the highest that passes."""
        gate, grid = self.common["gate"], self.settings.grid
        told = {**grid, "progress": self.common["progress"]}
        if not halving:
            return probe_layers(self.prober, self.groups, **told)
        return find_edges(
            self.prober, self.groups, passes=lambda probe: gate.judge(probe).passed, **told
        )

    def costs(self) -> dict[str, Any]:
        """What removing the channels of every group costs, one after another."""
        prober, rank = self.prober, find_importance(self.importance)
        evidence = CriterionContext(
            model=prober.model,
            graph=prober.graph,
            activity=prober.recovery.activity,
            seed=self.seed,
        )
        found = prober.processes.map_sharded(
            self.groups, lambda group: removal_costs(rank, evidence, group)
        )
        return {group.name: costs for group, costs in zip(self.groups, found, strict=True)}


def _prime(asked: _Question) -> PolicyResult:
    chosen, prober = asked.settings, asked.prober
    layers = asked.layers(halving=False) if chosen.whole_curves else unprobed(asked.grids)
    threshold = chosen.target_threshold
    prime = Prime(**asked.common, reading=chosen.reading, target_threshold=threshold)
    return prime.walk(layers, lambda cuts, around: prober.probe(cuts, around=around))


def _allocate(asked: _Question) -> PolicyResult:
    return Allocate(**asked.common, limits=asked.limits).solve(asked.grids, asked.prober)


def _uniform(asked: _Question) -> PolicyResult:
    return Uniform(**asked.common).solve(asked.grids, asked.prober)


def _random(asked: _Question) -> PolicyResult:
    return Random(**asked.common, seed=asked.seed).solve(asked.grids, asked.prober)


def _global(asked: _Question) -> PolicyResult:
    shares = asked.settings.pruning_rates
    ranking = Global(**asked.common, costs=asked.costs(), shares=shares)
    return ranking.solve(asked.all_widths, asked.prober)


def _psvit(asked: _Question) -> PolicyResult:
    psvit = Psvit(**asked.common, highest=max(asked.settings.pruning_rates))
    halving = not asked.settings.exact
    return psvit.solve(asked.all_widths, asked.prober, lambda: asked.layers(halving=halving))


_POLICIES: dict[str, Callable[[_Question], PolicyResult]] = {
    "allocate": _allocate,
    "prime": _prime,
    "psvit": _psvit,
    "uniform": _uniform,
    "global": _global,
    "random": _random,
}

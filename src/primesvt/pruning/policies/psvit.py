"""The policy of PSViT: uniform on large layers, sensitivity of each layer, fine-grained rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from primesvt.channels.widths import WidthGrid, every_width, kept_count
from primesvt.pruning.policies.base import NetworkProbe, PolicyResult, ProbedNetworks
from primesvt.pruning.policies.ladder import Found, NestedPlans, OneParameterPolicy, better, climb
from primesvt.pruning.probe_table import Layer
from primesvt.pruning.sensitivity import find_edges, probe_layers
from primesvt.registry import POLICIES

__all__ = ["Psvit"]

RUNGS = tuple(step / 100 for step in range(1, 101))


@POLICIES("psvit")
class Psvit(OneParameterPolicy):
    """Three steps, our reading of them (docs/method.md).

    1. Uniform: the large layers, of at least the mean number of parameters, at one rate,
       up to the highest of the pruning rates.
    2. Sensitivity: every layer cut alone; the highest rate that the gate passes is its tolerance.
    3. Fine-grained: all layers, at rates in proportion to their tolerances.

    Steps 1 and 3 have one parameter each and go as far as the limits allow. Of their plans the one
    of the larger saving is taken; where both save all that is needed, the one of the lesser drop.

    Source: PSViT (arXiv 2606.03257), abstract: uniform channel-wise filter pruning, sensitivity of
    each layer in accuracy and size, fine-grained pruning by sensitivity and architecture.
    """

    any_width = True

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Take the three steps."""
        highest = max((rate for grid in grids for rate in grid.rates), default=0.0)
        plans = self.begin(tuple(map(every_width, grids)), prober)
        large = _large(plans.grids)
        uniform = climb(plans, [_ladder(large, {grid.group: highest for grid in large})])
        tolerated = {g.group: self._tolerance(g) for g in self._sensitivity(grids, prober)}
        fine = climb(plans, [_ladder(plans.grids, tolerated)])
        walk = self.end(plans, _of_both(plans, uniform, fine))
        sensitive = any(rate < highest for rate in tolerated.values())
        return replace(walk, accuracy_bound=not walk.stopped and (walk.accuracy_bound or sensitive))

    def _sensitivity(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> Sequence[Layer]:
        """Every layer alone: at all rates, or by halving up to the highest that passes."""
        if prober.exact:
            return probe_layers(prober, grids)
        return find_edges(prober, grids, passes=lambda probe: self.gate.judge(probe).passed)

    def _tolerance(self, layer: Layer) -> float:
        passing = (
            point.rate
            for point in layer.points
            if point.probe is None or self.gate.judge(point.probe).passed
        )
        return max(passing, default=0.0)


def _of_both(plans: ProbedNetworks, uniform: Found | None, fine: Found | None) -> Found | None:
    """The better of two."""
    if uniform is None or fine is None:
        return uniform or fine
    best = better(plans, uniform.plan, fine.plan)
    return uniform if best is uniform.plan else fine


def _large(grids: Sequence[WidthGrid]) -> list[WidthGrid]:
    """Layers of at least the mean number of parameters."""
    total = sum(grid.parameters for grid in grids)
    return [grid for grid in grids if grid.parameters * len(grids) >= total]


def _ladder(grids: Sequence[WidthGrid], highest: Mapping[str, float]) -> NestedPlans:
    """All groups at the same share of their highest rates, in steps of a hundredth."""
    return NestedPlans(rungs=RUNGS, at=partial(_at, grids, highest))


def _at(
    grids: Sequence[WidthGrid], highest: Mapping[str, float], share: float
) -> Mapping[str, int]:
    return {
        grid.group: kept_count(grid.size, round(share * highest[grid.group], 6)) for grid in grids
    }

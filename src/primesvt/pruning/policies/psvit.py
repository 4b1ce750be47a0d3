"""The policy of PSViT: uniform on large layers, sensitivity of each layer, fine-grained rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    """The policy of PSViT in three steps, by our reading of its abstract (docs/method.md).

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
        """Take the three steps, and the better of the two plans that they give."""
        highest = max((rate for grid in grids for rate in grid.rates), default=0.0)
        plans = self.begin(tuple(map(every_width, grids)), prober)
        total = sum(grid.parameters for grid in plans.grids)
        large = [grid for grid in plans.grids if grid.parameters * len(plans.grids) >= total]
        uniform = climb(plans, [_ladder(large, {grid.group: highest for grid in large})])
        if prober.exact:
            layers = probe_layers(prober, grids)
        else:
            layers = find_edges(prober, grids, passes=lambda p: self.gate.judge(p).passed)
        tolerated = {layer.group: self._tolerance(layer) for layer in layers}
        fine = climb(plans, [_ladder(plans.grids, tolerated)])
        found = self.end(plans, _of_both(plans, uniform, fine))
        sensitive = any(rate < highest for rate in tolerated.values())
        bound = not found.stopped and (found.accuracy_bound or sensitive)
        return replace(found, accuracy_bound=bound)

    def _tolerance(self, layer: Layer) -> float:
        """The highest rate at which a layer, cut alone, passes the gate; 0 for none."""
        passing = (
            point.rate
            for point in layer.points
            if point.probe is None or self.gate.judge(point.probe).passed
        )
        return max(passing, default=0.0)


def _of_both(plans: ProbedNetworks, uniform: Found | None, fine: Found | None) -> Found | None:
    """The better of the two steps' plans, of which either may be missing."""
    if uniform is None or fine is None:
        return uniform or fine
    best = better(plans, uniform.plan, fine.plan)
    return uniform if best is uniform.plan else fine


def _ladder(grids: Sequence[WidthGrid], highest: Mapping[str, float]) -> NestedPlans:
    """Plans with all groups at the same share of their highest rates, in steps of a hundredth."""

    def at(share: float) -> Mapping[str, int]:
        return {g.group: kept_count(g.size, round(share * highest[g.group], 6)) for g in grids}

    return NestedPlans(rungs=RUNGS, at=at)

"""The policy of PSViT: uniform on large layers, sensitivity of each layer, fine-grained rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from primesvt.channels.widths import WidthGrid, kept_count
from primesvt.pruning.policies.base import NetworkProbe, PolicyResult, ProbedNetworks
from primesvt.pruning.policies.ladder import Found, NestedPlans, OneParameterPolicy, better, climb
from primesvt.pruning.probe_table import Layer

__all__ = ["Psvit"]

RUNGS = tuple(step / 100 for step in range(1, 101))


@dataclass(frozen=True, kw_only=True)
class Psvit(OneParameterPolicy):
    """Three steps, our reading of them (docs/method.md).

    1. Uniform: the large layers, of at least the mean number of parameters, at one rate.
    2. Sensitivity: every layer cut alone; the highest rate that the gate passes is its tolerance.
    3. Fine-grained: all layers, at rates in proportion to their tolerances.

    Steps 1 and 3 have one parameter each and go as far as the limits allow. Of their plans the one
    of the larger saving is taken; where both save all that is needed, the one of the lesser drop.

    Args:
        highest: the highest rate of step 1.

    Source: PSViT (arXiv 2606.03257), abstract: uniform channel-wise filter pruning, sensitivity of
    each layer in accuracy and size, fine-grained pruning by sensitivity and architecture.
    """

    highest: float

    def solve(
        self,
        grids: Sequence[WidthGrid],
        tools: NetworkProbe,
        sensitivity: Callable[[], Sequence[Layer]],
    ) -> PolicyResult:
        """Take the three steps; ``sensitivity`` is asked for once, after the first."""
        plans = self.begin(grids, tools)
        large = _large(plans.grids)
        alike = {grid.group: self.highest for grid in large}
        uniform = climb(plans, [_ladder(large, alike)])
        tolerated = {layer.group: self._tolerance(layer) for layer in sensitivity()}
        fine = climb(plans, [_ladder(plans.grids, tolerated)])
        walk = self.end(plans, _of_both(plans, uniform, fine))
        sensitive = any(rate < self.highest for rate in tolerated.values())
        return replace(walk, accuracy_bound=not walk.stopped and (walk.accuracy_bound or sensitive))

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

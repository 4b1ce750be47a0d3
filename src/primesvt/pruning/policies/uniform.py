"""Uniform pruning: one rate for all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from primesvt.channels.widths import PERCENTS, WidthGrid
from primesvt.pruning.policies.base import NetworkProbe, PolicyResult
from primesvt.pruning.policies.ladder import NestedPlans, OneParameterPolicy, climb
from primesvt.registry import POLICIES

__all__ = ["Uniform"]


@POLICIES("uniform")
class Uniform(OneParameterPolicy):
    """Prune every group at the same rate: the highest whose network stays within the limits.

    Example:
        >>> from primesvt.pruning.policies import AccuracyGate
        >>> from primesvt.pruning.probe_table import Probe, Reference
        >>> from primesvt.evaluation.evaluator import Measurement
        >>> class NetworkProbe:  # every channel is 4 bytes, and costs 1 point in score
        ...     limits, tell = (), lambda *_: None
        ...     def bytes_saved(self, cuts):
        ...         return 4 * sum(8 - kept for kept in cuts.values())
        ...     def probe(self, cuts):
        ...         saved = self.bytes_saved(cuts)
        ...         return Probe(kind="walk", cuts=cuts, accuracy=50 - saved / 4,
        ...                      saving=saved / 64, parameter_bytes=64 - saved)
        >>> unpruned = Reference(context={}, measurement=Measurement(value=50), parameter_bytes=64)
        >>> rates = {6: 0.25, 4: 0.5, 2: 0.75}
        >>> grids = [WidthGrid(group=name, positions=1, size=8, parameters=8, widths=rates)
        ...          for name in ("fc1", "fc2")]
        >>> gate = AccuracyGate(kind="point", allowed=9, reference=unpruned)
        >>> Uniform(gate=gate).search(grids, NetworkProbe()).cuts
        {'fc1': 4, 'fc2': 4}
    """

    rates = PERCENTS

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Choose the rate, one of those of the grids."""
        plans = self.begin(grids, prober)

        def at(rate: float) -> Mapping[str, int]:
            return {grid.group: grid.at(rate) for grid in plans.grids}

        rates = sorted({rate for grid in grids for rate in grid.widths.values()})
        return self.end(plans, climb(plans, [NestedPlans(rungs=rates, at=at)]))

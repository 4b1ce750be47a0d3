"""The gate: whether a measured network stays within the accuracy limit."""

from __future__ import annotations

from dataclasses import dataclass

from primesvt.config import Method
from primesvt.evaluation.confidence import mean_drop_bound, paired_drop_bound
from primesvt.pruning.probe_table import Probe, Reference

__all__ = ["GATES", "AccuracyGate", "GateDecision"]

GATES = ("point", "bound")
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """Whether one network passes the gate, with its drop as a difference of mean outcomes.

    ``bound`` is the one-sided confidence bound of the paired drop, ``None`` without outcomes.
    """

    passed: bool
    drop: float
    bound: float | None


@dataclass(frozen=True, kw_only=True)
class AccuracyGate:
    """The accuracy limit: a network passes if its drop, or a bound of it, is at most ``allowed``.

    Args:
        kind: ``point`` (the measured drop, the paper's) or ``bound``.
        allowed: largest drop, as a difference of mean outcomes.
        reference: the unpruned network.
        level: one-sided confidence level of the bound.

    Raises:
        ValueError: an unknown kind, or ``bound`` for a score without per-sample outcomes.
    """

    kind: str
    allowed: float
    reference: Reference
    level: float = Method.model_fields["level"].default

    def __post_init__(self) -> None:
        if self.kind not in GATES:
            raise ValueError(f"unknown gate {self.kind!r}; known: {', '.join(GATES)}")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level is {self.level}, but must be at least 0.5 and below 1")
        if self.kind == "bound" and self.reference.measurement.outcomes is None:
            raise ValueError(
                "the bound gate pairs outcomes, but score gave one number; "
                "return a vector of per-sample outcomes, or take gate='point'"
            )

    def judge(self, probe: Probe) -> GateDecision:
        """Decide whether a measured network passes; one that was rejected early does not."""
        bound = self.bound(probe)
        drop = self.reference.accuracy - probe.accuracy
        if probe.samples is not None and probe.lost is not None and probe.gained is not None:
            drop = (probe.lost - probe.gained) / probe.samples
        decisive = drop if self.kind == "point" or bound is None else bound
        passed = probe.rejected is None and decisive <= self.allowed + _ROUNDING
        return GateDecision(passed=passed, drop=drop, bound=bound)

    def bound(self, probe: Probe) -> float | None:
        """One-sided upper confidence bound of the paired drop."""
        if probe.samples is None:
            return None
        if probe.lost is not None and probe.gained is not None:
            return paired_drop_bound(probe.lost, probe.gained, probe.samples, level=self.level)
        drop = self.reference.accuracy - probe.accuracy
        return mean_drop_bound(drop, probe.deviation or 0.0, probe.samples, level=self.level)

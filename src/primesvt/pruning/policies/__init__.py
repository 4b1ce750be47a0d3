"""Policies: from measured groups and limits to the cuts that are taken."""

from primesvt.pruning.gate import AccuracyGate, GateDecision
from primesvt.pruning.policies.base import (
    LayerCut,
    NetworkProbe,
    Policy,
    PolicyResult,
    TargetLayer,
    cuts_of,
    find_policy,
)

__all__ = [
    "AccuracyGate",
    "GateDecision",
    "LayerCut",
    "NetworkProbe",
    "Policy",
    "PolicyResult",
    "TargetLayer",
    "cuts_of",
    "find_policy",
]

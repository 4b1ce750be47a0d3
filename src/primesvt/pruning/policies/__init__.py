"""Policies: from measured groups and limits to the cuts that are taken."""

from primesvt.channels.widths import every_width, usual_rates
from primesvt.pruning.gate import AccuracyGate, GateDecision
from primesvt.pruning.policies.allocate import Allocate
from primesvt.pruning.policies.base import LayerCut, PolicyResult, TargetLayer, cuts_of
from primesvt.pruning.policies.global_ranking import Global
from primesvt.pruning.policies.prime import ORDERS, READINGS, Prime
from primesvt.pruning.policies.psvit import Psvit
from primesvt.pruning.policies.random_rates import Random
from primesvt.pruning.policies.uniform import Uniform

__all__ = [
    "ORDERS",
    "POLICIES",
    "READINGS",
    "AccuracyGate",
    "Allocate",
    "GateDecision",
    "Global",
    "LayerCut",
    "PolicyResult",
    "Prime",
    "Psvit",
    "Random",
    "TargetLayer",
    "Uniform",
    "cuts_of",
    "every_width",
    "usual_rates",
]

POLICIES = ("allocate", "prime", "psvit", "uniform", "global", "random")

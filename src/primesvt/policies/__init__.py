"""Policies: from measured groups and limits to the cuts that are taken."""

from primesvt.policies.allocate import Allocate
from primesvt.policies.gate import Gate, Verdict
from primesvt.policies.prime import ORDERS, READINGS, Prime
from primesvt.policies.walk import Choice, Target, Walk, cuts_of

__all__ = [
    "ORDERS",
    "POLICIES",
    "READINGS",
    "Allocate",
    "Choice",
    "Gate",
    "Prime",
    "Target",
    "Verdict",
    "Walk",
    "cuts_of",
]

POLICIES = ("allocate", "prime")

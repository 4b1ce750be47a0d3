"""Policies: from probed layers and limits to the cuts that are taken."""

from primesvt.policies.gate import Gate, Verdict
from primesvt.policies.prime import ORDERS, READINGS, Choice, Prime, Target, Walk

__all__ = ["ORDERS", "READINGS", "Choice", "Gate", "Prime", "Target", "Verdict", "Walk"]

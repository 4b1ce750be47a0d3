"""Rules: the effect of every operator on the symbols of its inputs.

A rule takes a ``Call`` and returns the axes of the output (a list, or a list of lists for several
outputs). An operator without a rule freezes everything it touches: never guess.
"""

from __future__ import annotations

from primesvt.channels.rules import contraction, indexing, pointwise, reduction, shape
from primesvt.channels.rules.registry import Call, Rule, Unlisted, find_rule

__all__ = [
    "Call",
    "Rule",
    "Unlisted",
    "contraction",
    "find_rule",
    "indexing",
    "pointwise",
    "reduction",
    "shape",
]

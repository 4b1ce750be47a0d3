"""Policies: from measured groups and limits to the cuts that are taken."""

from primesvt.policies.allocate import Allocate
from primesvt.policies.draws import Random
from primesvt.policies.gate import Gate, Verdict
from primesvt.policies.prime import ORDERS, READINGS, Prime
from primesvt.policies.psvit import Psvit
from primesvt.policies.ranking import Global
from primesvt.policies.rates import every_width, usual_rates
from primesvt.policies.uniform import Uniform
from primesvt.policies.walk import Choice, Target, Walk, cuts_of

__all__ = [
    "ORDERS",
    "POLICIES",
    "READINGS",
    "Allocate",
    "Choice",
    "Gate",
    "Global",
    "Prime",
    "Psvit",
    "Random",
    "Target",
    "Uniform",
    "Verdict",
    "Walk",
    "cuts_of",
    "every_width",
    "usual_rates",
]

POLICIES = ("allocate", "prime", "psvit", "uniform", "global", "random")

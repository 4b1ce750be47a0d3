"""What a network computes for one sample, and what that costs: MACs, SynOps, joules."""

from primesvt.energy.estimate import PRICES, Energy, Prices, energy_of, formulas
from primesvt.energy.operations import COUNTED, ModuleCosts, Operations, count_operations

__all__ = [
    "COUNTED",
    "PRICES",
    "Energy",
    "ModuleCosts",
    "Operations",
    "Prices",
    "count_operations",
    "energy_of",
    "formulas",
]

"""What a network computes for one sample, and what that costs: MACs, SynOps, joules."""

from primesvt.profiling.energy import PRICES, Energy, Prices, energy_of, formulas
from primesvt.profiling.operations import COUNTED, ModuleCosts, Operations, count_operations

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

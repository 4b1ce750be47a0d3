"""Energy of one forward pass: the usual estimate by operations, and one that counts memory too."""

from __future__ import annotations

from dataclasses import dataclass

from primesvt.profiling.operations import Operations

__all__ = ["PRICES", "Energy", "EnergyPerOperation", "energy_of", "formulas"]


@dataclass(frozen=True, kw_only=True)
class EnergyPerOperation:
    """Energy of an operation and of a byte, in picojoules; 45 nm, 0.9 V, 32-bit floating point.

    A multiplication takes 3.7 and an addition 0.9. A 64-bit access takes 100 in an on-chip memory
    of 1 MB, and 1,300 to 2,600 in DRAM, of which this is the lower end.

    Source: Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC 2014.
    """

    mac: float = 4.6
    accumulate: float = 0.9
    chip_byte: float = 100 / 8
    dram_byte: float = 1300 / 8


PRICES = EnergyPerOperation()


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Two estimates for one sample, in joules; ``formulas`` says what each leaves out.

    Attributes:
        operations: of multiply-accumulates and accumulates alone.
        with_memory: the same, and the memory accesses that they cause; ``None`` where potentials
            are not counted.
    """

    operations: float
    with_memory: float | None


def energy_of(
    operations: Operations, parameter_bytes: int, *, prices: EnergyPerOperation = PRICES
) -> Energy:
    """Estimate the energy of one sample.

    Example:
        >>> from torch import nn, ones
        >>> from primesvt.profiling.operations import count_operations
        >>> counted = count_operations(nn.Linear(10, 1, bias=False), [(ones(1, 10),)])
        >>> f"{energy_of(counted, 40).operations:.2g} J"  # 10 MACs of 4.6 pJ
        '4.6e-11 J'
    """
    picojoules = prices.mac * operations.multiplied + prices.accumulate * operations.synops
    if operations.state_bytes is None:
        return Energy(operations=picojoules * 1e-12, with_memory=None)
    moved = prices.chip_byte * (operations.operand_bytes + operations.state_bytes)
    loaded = prices.dram_byte * parameter_bytes
    return Energy(operations=picojoules * 1e-12, with_memory=(picojoules + moved + loaded) * 1e-12)


def formulas(prices: EnergyPerOperation = PRICES) -> tuple[str, str]:
    """How each estimate is made, and what it leaves out: one sentence each.

    Example:
        >>> print(formulas()[0])
        Energy: 4.6 pJ x MACs of real numbers + 0.9 pJ x SynOps (45 nm, 32 bit); ...
    """
    return (
        f"Energy: {prices.mac:g} pJ x MACs of real numbers + {prices.accumulate:g} pJ x SynOps"
        " (45 nm, 32 bit); without memory, batch norm (folded), neuron updates, residual sums,"
        " pooling and control.",
        f"With memory: the same + {prices.chip_byte:g} pJ x bytes on the chip (a weight or operand"
        " for every operation, every potential read and written at each time step) +"
        f" {prices.dram_byte:g} pJ x parameter bytes (from DRAM, once per sample); without reuse,"
        " without spikes and sums on their way between layers.",
    )

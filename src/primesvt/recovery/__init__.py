"""Recovery without training: what is left of a network is adapted to make up for what was cut."""

from primesvt.recovery.recovery import BatchNorm, Recovery, Refit, find_recovery

__all__ = ["BatchNorm", "Recovery", "Refit", "find_recovery"]

"""Recovery: what is left of a network makes up for what was cut, without training."""

from primesvt.recovery.recovery import BatchNorm, Recovery, Refit, find_recovery

__all__ = ["BatchNorm", "Recovery", "Refit", "find_recovery"]

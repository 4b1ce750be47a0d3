"""Recovery: what is left of a network makes up for what was cut, without training."""

from primesvt.recovery.recovery import RECOVERIES, Recovery

__all__ = ["RECOVERIES", "Recovery"]

"""Recovery: what is left of a network makes up for what was cut, without training.

The package can be called as the decorator that gives a recovery its name:
``@primesvt.recovery("mine")`` is ``@primesvt.plugins.recovery("mine")``.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from primesvt.recovery.recovery import BatchNorm, Match, Recovery, Refit, find_recovery
from primesvt.registry import RECOVERIES

__all__ = ["BatchNorm", "Match", "Recovery", "Refit", "find_recovery"]

Kind = TypeVar("Kind")


class _Decorator(ModuleType):
    """A package that gives a class the name of a recovery when it is called."""

    def __call__(self, name: str) -> Callable[[Kind], Kind]:
        return RECOVERIES(name)


sys.modules[__name__].__class__ = _Decorator

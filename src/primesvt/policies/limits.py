"""Limits beside accuracy and parameter memory, as a policy counts them."""

from __future__ import annotations

from typing import Protocol

from primesvt.profiling.limits import Held
from primesvt.pruning.probe_table import Cuts

__all__ = ["Limit"]


class Limit(Protocol):
    """So much of something must be saved: of time, of membrane potentials; in its own unit."""

    @property
    def name(self) -> str:
        """What it limits, in words."""
        ...

    @property
    def needed(self) -> float:
        """How much must be saved; nothing where it is not above zero."""
        ...

    def saved(self, cuts: Cuts) -> float:
        """Estimate what cuts save, group by group; quick, as a search asks for it often."""
        ...

    def proved(self, cuts: Cuts) -> float:
        """What the network with these cuts really saves, measured once."""
        ...

    def at(self, cuts: Cuts) -> Held:
        """How it stands with these cuts."""
        ...

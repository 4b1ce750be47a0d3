"""Limits beside accuracy and parameter memory: what they ask for, and whether they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from primesvt._format import megabytes, scaled
from primesvt.channels.widths import Widths

__all__ = ["Limit", "LimitOutcome"]

_NEAR = 0.97
_WORDS = {"latency": "time", "membrane": "membrane potentials"}


@dataclass(frozen=True, kw_only=True)
class LimitOutcome:
    """A limit on time or membrane memory, with the values before and after pruning.

    Attributes:
        name: ``latency`` or ``membrane``.
        before, after: of the network that the policy started from, and of the final one;
            milliseconds of a batch, or bytes per sample.
        allowed: the most that it may be.
        batch: samples in the batch that is timed.

    Example:
        >>> time = LimitOutcome(name="latency", before=40.0, after=21.5, allowed=20.0, batch=32)
        >>> print(time)
        21.5 ms for a batch of 32, 0.54 of before (20.0 ms allowed)
        >>> time.held, time.what
        (False, 'time')
    """

    name: str
    before: float
    after: float
    allowed: float
    batch: int | None = None

    @property
    def held(self) -> bool:
        """Whether the final network stays within the limit."""
        return self.after <= self.allowed * (1 + 1e-9)

    @property
    def near(self) -> bool:
        """The limit decided the result: it was exceeded before and is now met narrowly."""
        return self.held and self.before > self.allowed and self.after >= _NEAR * self.allowed

    @property
    def what(self) -> str:
        """The limited quantity, in words."""
        return _WORDS.get(self.name, self.name.replace("_", " "))

    def __str__(self) -> str:
        if self.name == "membrane":
            after, allowed = megabytes(round(self.after)), megabytes(round(self.allowed))
            return f"{after} of membrane potentials per sample ({allowed} allowed)"
        share = self.after / self.before
        after, allowed = (scaled(each / 1e3, "s") for each in (self.after, self.allowed))
        return f"{after} for a batch of {self.batch}, {share:.2f} of before ({allowed} allowed)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, and whether it held."""
        return {**asdict(self), "held": self.held}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LimitOutcome:
        """Read what ``to_dict`` made."""
        return cls(**{name: value for name, value in content.items() if name != "held"})


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

    def saved(self, cuts: Widths) -> float:
        """Estimate what cuts save, group by group; quick, as a search asks for it often."""
        ...

    def proved(self, cuts: Widths) -> float:
        """What the network with these cuts really saves, measured once."""
        ...

    def at(self, cuts: Widths) -> LimitOutcome:
        """How it stands with these cuts."""
        ...

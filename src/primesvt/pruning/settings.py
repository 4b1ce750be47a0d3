"""The method of a run: policy, importance, recovery, gate and rates, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from primesvt.channels.widths import check_rates
from primesvt.config import PRESETS
from primesvt.importance import find_importance
from primesvt.pruning.gate import GATES
from primesvt.pruning.policies import ORDERS, POLICIES, READINGS, usual_rates
from primesvt.recovery import RECOVERIES

__all__ = ["PRESETS", "Settings"]


_CHOICES = {
    "policy": POLICIES,
    "recovery": RECOVERIES,
    "gate": GATES,
    "reading": READINGS,
    "order": ORDERS,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The method of a run (docs/method.md); every value is checked when it is made.

    Example:
        >>> Settings(gate="bound").with_preset("paper").gate
        'point'
        >>> Settings(gate="none")
        Traceback (most recent call last):
            ...
        ValueError: unknown gate 'none'; known: point, bound
    """

    policy: str = "allocate"
    importance: str = "obs"
    recovery: str = "refit"
    gate: str = "bound"
    reading: str = "A"
    order: str = "producer"
    target_threshold: float = 0.0
    level: float = 0.95
    confirm: bool = True
    lossless: bool = True
    exact: bool = False
    race_error: float = 0.05
    full_curves: bool = False
    rates: Sequence[float] | None = None
    channel_multiple: int = 1
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    include_streams: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(allowed)}")
        find_importance(self.importance)
        if not 0 <= self.target_threshold <= 1:
            raise ValueError(f"target_threshold is {self.target_threshold}, but must lie in 0 .. 1")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level is {self.level}, but must be at least 0.5 and below 1")
        if not 0 < self.race_error <= 0.5:
            raise ValueError(
                f"race_error is {self.race_error}, but must be above 0 and at most 0.5"
            )
        if self.full_curves and self.policy != "prime":
            raise ValueError(
                f"full_curves belongs to policy 'prime', not {self.policy!r}; leave one of them out"
            )
        _check_multiple(self.channel_multiple, self.policy)
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a list of globs, as in {name}=['*.mlp.*']")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.rates is not None:
            object.__setattr__(self, "rates", check_rates(self.rates))

    @property
    def whole_curves(self) -> bool:
        """Every rate of every layer has to be measured, not just the highest that passes."""
        compares = self.reading == "B" or self.target_threshold > 0
        return self.exact or self.full_curves or compares

    @property
    def pruning_rates(self) -> tuple[float, ...]:
        """The rates asked for, or those usual for the policy."""
        return usual_rates(self.policy) if self.rates is None else tuple(self.rates)

    @property
    def grid(self) -> dict[str, Any]:
        """What the widths of a group depend on, as ``grids_of`` takes it."""
        return {
            "rates": self.pruning_rates,
            "order": self.order,
            "multiple": self.channel_multiple,
        }

    def with_preset(self, name: str | None) -> Settings:
        """These settings with the values that a preset stands for."""
        if name is None:
            return self
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return replace(self, **PRESETS[name])


# They do not keep to the widths of given rates.
_EVERY_WIDTH = ("psvit", "global")


def _check_multiple(multiple: int, policy: str) -> None:
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(
            f"channel_multiple is {multiple}, but must be a whole number of at least 1"
        )
    if multiple > 1 and policy in _EVERY_WIDTH:
        allowed = ", ".join(name for name in POLICIES if name not in _EVERY_WIDTH)
        raise ValueError(
            f"channel_multiple does not go with policy {policy!r}, which takes any width; "
            f"choose one of {allowed}, or leave channel_multiple out"
        )

"""The base class of all model configs, and checks of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

__all__ = ["ModelConfig", "check_choice", "check_positive", "check_tau"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of one *unpruned* model; pruned widths are read from its tensors.

    Example:
        >>> ModelConfig(num_classes=10).to_dict()["num_classes"]
        10
    """

    family: ClassVar[str] = ""

    in_channels: int = 3
    num_classes: int = 1000
    time_steps: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        check_positive(self, "in_channels", "num_classes", "time_steps")

    @property
    def batch_mixing(self) -> str:
        """The setting by which images of a batch influence each other; empty if there is none."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict that names the family.

        Example:
            >>> ModelConfig(in_channels=1).to_dict()
            {'family': '', 'in_channels': 1, 'num_classes': 1000, 'time_steps': 4}
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"family": self.family, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a dict as ``to_dict`` makes it; unknown names raise ``TypeError``.

        Example:
            >>> ModelConfig.from_dict({"num_classes": 10}).num_classes
            10
        """
        given = {name: value for name, value in values.items() if name != "family"}
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            raise TypeError(
                f"unknown setting {', '.join(map(repr, unknown))} for {cls.__name__}; "
                f"allowed: {', '.join(allowed)}"
            )
        return cls(**given)


def check_positive(config: ModelConfig, *names: str, minimum: int = 1) -> None:
    """Raise ``ValueError`` unless the named fields hold integers of at least ``minimum``.

    Example:
        >>> check_positive(ModelConfig(), "time_steps")
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or number < minimum:
                raise ValueError(f"{name} is {value!r}, but needs integers of at least {minimum}")


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ``ValueError`` unless a setting has one of the allowed values.

    Example:
        >>> check_choice("spike_mode", "lif", ("lif", "plif"))
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def check_tau(tau: float) -> None:
    """Raise ``ValueError`` unless a membrane time constant is above one.

    Example:
        >>> check_tau(2.0)
    """
    if not isinstance(tau, int | float) or isinstance(tau, bool) or not tau > 1:
        raise ValueError(f"tau is {tau!r}, but the membrane time constant must be above 1")

"""The base class of all model configs, and checks of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from primesvt._files import validated
from primesvt._guard import MOST_STEPS

__all__ = ["ModelConfig", "check_choice", "check_positive", "check_size", "check_tau"]


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
        for field in fields(self):
            check_size(field.name, getattr(self, field.name))

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
        validated(cls, given)  # the types; of a file they may be any
        return cls(**given)


LARGEST, DEEPEST = 2**20, 1024


def check_size(name: str, value: Any) -> None:
    """Raise ``ValueError`` where a setting is so large that no machine could build the model.

    Example:
        >>> check_size("time_steps", 10**20)
        Traceback (most recent call last):
            ...
        ValueError: time_steps is 100000000000000000000, but at most 4096 are allowed
    """
    most = MOST_STEPS if name == "time_steps" else DEEPEST if "depth" in name else LARGEST
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and number > most:
            raise ValueError(f"{name} is {number}, but at most {most} are allowed")


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

"""Settings that a person gives because no tensor tells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from primesvt.models.families import FAMILIES, Family
from primesvt.models.nearest import agrees

__all__ = ["SETTINGS", "check_names", "checked"]

SETTINGS = (
    "time_steps",
    "num_heads",
    "pooling_stat",
    "dvs_mode",
    "spike_mode",
    "img_size",
    "group_size",
    "spike_levels",
    "tau",
)


def check_names(names: Iterable[str]) -> None:
    """Raise ``TypeError`` unless every name is a setting of some family.

    Example:
        >>> check_names(["time_steps", "tau"])
        >>> check_names(["heads"])
        Traceback (most recent call last):
        ...
        TypeError: unknown setting 'heads'; known: time_steps, num_heads, pooling_stat, ...
    """
    special = {name for family in FAMILIES.values() for name in _fields(family)} - set(SETTINGS)
    unknown = [name for name in names if name not in special | set(SETTINGS)]
    if unknown:
        raise TypeError(
            f"unknown setting {', '.join(map(repr, unknown))}; known: {', '.join(SETTINGS)}; "
            f"in some families also {', '.join(sorted(special))}"
        )


def checked(
    family: Family,
    overrides: Mapping[str, Any],
    *,
    inferred: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings a person gave, or raise ``ValueError`` for one that cannot be.

    ``defaults`` are the values without them, whose types the result takes: ``1111`` for a setting
    that is text becomes ``"1111"``.

    Example:
        >>> from primesvt.models.families import FAMILIES
        >>> checked(FAMILIES["sdt_v2"], {"tau": 3}, inferred={}, defaults={"tau": 2.0})
        {'tau': 3}
    """
    own, accepted = _fields(family), {}
    for name, value in overrides.items():
        if name not in own:
            raise ValueError(f"{family.title} has no setting {name!r}; it has: {', '.join(own)}")
        given = _like(value, defaults.get(name))
        if name in inferred and not agrees(given, inferred[name]):
            raise ValueError(
                f"{name}={given!r} was given, but the tensors of the checkpoint say "
                f"{name}={inferred[name]!r}; leave it out"
            )
        accepted[name] = given
    return accepted


def _fields(family: Family) -> list[str]:
    return [field.name for field in fields(family.config)]


def _like(value: Any, model: Any) -> Any:
    if isinstance(model, str) and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return tuple(value) if isinstance(value, list) else value

"""Find the registered model whose config is nearest to given settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, log
from typing import Any

from primesvt.models.entry import ModelEntry

__all__ = ["agrees", "nearest_entry"]

_NONE: Mapping[str, Any] = {}


def nearest_entry(
    entries: Iterable[ModelEntry], known: Mapping[str, Any], *, given: Mapping[str, Any] = _NONE
) -> ModelEntry:
    """Return the entry that agrees in most of the known settings; of several, the nearest in size.

    Where shapes do not tell entries apart, settings ``given`` by a person do.

    The official class (``layout``) comes before all else, then the number of image channels, which
    tells event cameras from images. An entry of our own only counts for networks that are exactly
    it, or where no official one reads as many channels.

    Example:
        >>> from primesvt.models.families import FAMILIES
        >>> known = {"embed_dims": (60, 120, 250, 360), "in_channels": 3, "num_classes": 1000}
        >>> nearest_entry(FAMILIES["sdt_v2"].entries(), known).name
        'sdt_v2_15m'
    """
    of_width = ("embed_dim", "planes", "width")
    widths = {name: value for name, value in known.items() if name.startswith(of_width)}

    def likeness(entry: ModelEntry) -> tuple[float, ...]:
        own = entry.config.to_dict()
        same = {name: agrees(own[name], value) for name, value in known.items() if name in own}
        return (
            same.get("layout", True),
            same.get("in_channels", True),
            sum(same.values()),
            sum(name in own and agrees(own[name], value) for name, value in given.items()),
            -_distance(own, widths),
            -_distance(own, known),
        )

    every = list(entries)
    fitting = [entry for entry in every if entry.official or likeness(entry)[2] == len(known)]
    if not any(likeness(entry)[1] for entry in fitting):
        fitting = every
    # max() keeps the first of equals: the one a family lists first.
    return max(fitting, key=likeness)


def agrees(one: object, other: object) -> bool:
    """Whether two settings are the same, a list being as good as a tuple.

    Example:
        >>> agrees((4, 4), [4.0, 4.0])
        True
    """
    sequences = [tuple(each) if isinstance(each, list) else each for each in (one, other)]
    try:
        return bool(sequences[0] == sequences[1])
    except (RuntimeError, ValueError):  # a tensor or an array is no setting
        return False


def _distance(own: Mapping[str, Any], known: Mapping[str, Any]) -> float:
    """Distance of two configs: the sum of the absolute log ratios of their numbers."""
    return sum(_apart(own[name], value) for name, value in known.items() if name in own)


def _apart(one: Any, other: Any) -> float:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        if len(one) != len(other):
            return inf
        return sum(_apart(a, b) for a, b in zip(one, other, strict=True))
    numbers = (one, other)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
        return 0.0
    return abs(log(one / other))

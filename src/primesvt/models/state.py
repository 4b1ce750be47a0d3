"""Strict loading of weights with an error a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["check_shapes", "load_state"]

_SHOWN = 10


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str = "the state dict"
) -> None:
    """Copy a state dict with our own names into a model, or raise one ``ValueError``.

    The error lists the first ten missing, unexpected and misshapen tensors; nothing is copied then.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_state(layer, {"weight": torch.zeros(1, 3)})
        Traceback (most recent call last):
        ...
        ValueError: the state dict does not fit: 1 missing (bias); 1 of another shape (weight ...)
    """
    check_shapes(model.state_dict(), state, source=source)
    model.load_state_dict(dict(state))


def check_shapes(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, source: str
) -> None:
    """Raise ``ValueError`` unless both have the same names and shapes.

    Example:
        >>> check_shapes({"a": torch.zeros(2)}, {"a": torch.ones(2)}, source="the file")
    """
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    misshapen = [
        f"{key} is {_shape(given[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in given and _shape(given[key]) != _shape(expected[key])
    ]
    problems = [
        _listed(found, kind)
        for found, kind in (
            (missing, "missing"),
            (extra, "unexpected"),
            (misshapen, "of another shape"),
        )
        if found
    ]
    if problems:
        raise ValueError(f"{source} does not fit: {'; '.join(problems)}")


def _shape(value: object) -> list[int] | str:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _listed(found: Sequence[str], kind: str) -> str:
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {kind} ({', '.join(found[:_SHOWN])}{more})"

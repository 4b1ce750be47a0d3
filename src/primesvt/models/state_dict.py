"""Compare and load state dicts, with an error that lists the tensors that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Differences", "check_shapes", "differences", "give_tensors", "load_state", "tensors_of"]

_SHOWN = 10


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors of a state dict, without the extra states of modules.

    Example:
        >>> list(tensors_of(nn.Linear(2, 1)))
        ['weight', 'bias']
    """
    state = model.state_dict().items()
    return {name: value.detach().clone() for name, value in state if isinstance(value, Tensor)}


def give_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what ``tensors_of`` gave into a model, whose modules keep their extra states."""
    others = {k: v for k, v in model.state_dict().items() if not isinstance(v, Tensor)}
    model.load_state_dict({**others, **tensors})


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str = "the state dict"
) -> None:
    """Copy a state dict with our own names into a model, or raise one ``ValueError``.

    The error lists the first ten missing, extra and misshapen tensors; nothing is copied then.

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
    found = differences(expected, given)
    if found.count:
        raise ValueError(f"{source} does not fit: {found}")


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The tensors in which a state dict differs from the one expected; printed, ten of each kind.

    ``alike`` counts the tensors in which both agree.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]
    alike: int = 0

    @property
    def share(self) -> float:
        """Share of all names that only one side has; tensors of another shape count as half."""
        alone = len(self.missing) + len(self.extra)
        names = alone + len(self.misshapen) + self.alike
        return (alone + len(self.misshapen) / 2) / max(1, names)

    @property
    def count(self) -> int:
        """Number of tensors that differ."""
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    def __str__(self) -> str:
        kinds = (
            (self.missing, "missing"),
            (self.extra, "extra"),
            (self.misshapen, "of another shape"),
        )
        return "; ".join(_listed(found, kind) for found, kind in kinds if found)


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Differences:
    """Compare names and shapes.

    Example:
        >>> print(differences({"a": torch.zeros(2)}, {"a": torch.ones(3), "b": torch.ones(1)}))
        1 extra (b); 1 of another shape (a is [3] instead of [2])
    """
    common = [key for key in expected if key in given]
    misshapen = [key for key in common if _shape(given[key]) != _shape(expected[key])]
    return Differences(
        missing=tuple(key for key in expected if key not in given),
        extra=tuple(key for key in given if key not in expected),
        misshapen=tuple(
            f"{key} is {_shape(given[key])} instead of {_shape(expected[key])}" for key in misshapen
        ),
        alike=len(common) - len(misshapen),
    )


def _shape(value: object) -> list[int] | str:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _listed(found: Sequence[str], kind: str) -> str:
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {kind} ({', '.join(found[:_SHOWN])}{more})"

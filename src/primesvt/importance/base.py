"""What an importance criterion is, what it may use, and how one is registered by a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from primesvt.calibration import ActivationStatistics
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.registry import CRITERIA, place_of

__all__ = [
    "Criterion",
    "CriterionContext",
    "Scores",
    "criterion",
    "needs_inputs",
    "score_channels",
    "uses_seed",
]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CriterionContext:
    """All that a criterion may use: the unpruned network, its graph, and its activity.

    ``activity`` is ``None`` where there are no calibration inputs; ``seed`` is for draws.
    """

    model: nn.Module
    graph: ChannelGraph
    activity: ActivationStatistics | None = None
    seed: int = 0

    @property
    def seen(self) -> ActivationStatistics:
        """Activation statistics on calibration inputs; ``ValueError`` where there are none."""
        if self.activity is None:
            raise ValueError(
                "this importance needs calibration inputs, and there are none; give calibration=,"
                " or choose l2, l2_folded, l1 or random"
            )
        return self.activity


Criterion = Callable[[CriterionContext, ChannelGroup], Scores]

Function = TypeVar("Function", bound=Callable[..., Any])


def criterion(
    name: str, *, needs_inputs: bool = True, uses_seed: bool = False
) -> Callable[[Function], Function]:
    """A decorator that makes a function an importance criterion of that name.

    Args:
        name: what ``importance=`` and ``--importance`` call it.
        needs_inputs: it looks at ``context.activity``, which is there only with calibration inputs.
        uses_seed: its scores depend on ``context.seed``.

    Example:
        >>> @criterion("first_channels", needs_inputs=False)
        ... def first_channels(context, group):
        ...     return np.tile(-np.arange(group.size, dtype=float), (group.positions, 1))
        >>> CRITERIA.find("first_channels") is first_channels
        True
    """

    def register(function: Function) -> Function:
        setattr(function, "needs_inputs", needs_inputs)  # noqa: B010
        setattr(function, "uses_seed", uses_seed)  # noqa: B010
        return CRITERIA(name)(function)

    return register


def needs_inputs(criterion: Criterion) -> bool:
    """Whether a criterion looks at what calibration inputs show; one that does not say so does."""
    return bool(getattr(criterion, "needs_inputs", True))


def uses_seed(criterion: Criterion) -> bool:
    """Whether the scores of a criterion depend on the seed."""
    return bool(getattr(criterion, "uses_seed", False))


def score_channels(criterion: Criterion, context: CriterionContext, group: ChannelGroup) -> Scores:
    """The scores that a criterion gives the channels of a group, ``[positions, size]``, checked.

    Raises ``ValueError`` naming the criterion where they are of another shape or not finite.
    """
    scores = np.asarray(criterion(context, group))
    wanted = (group.positions, group.size)
    if scores.shape != wanted or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise ValueError(
            f"importance {place_of(criterion)} gave {scores.dtype} of shape {list(scores.shape)} "
            f"for {group.name}; it must give finite numbers of shape {list(wanted)}: one score for "
            "every channel at every position"
        )
    return scores.astype(np.float64)

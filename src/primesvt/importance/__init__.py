"""Importance criteria: a score for every channel of a group; the lowest are removed first."""

from __future__ import annotations

import numpy as np

from primesvt.channels.graph import Ids
from primesvt.importance.base import (
    Criterion,
    CriterionContext,
    Scores,
    criterion,
    needs_inputs,
    score_channels,
    uses_seed,
)
from primesvt.importance.obs import removal_costs
from primesvt.registry import CRITERIA

__all__ = [
    "Criterion",
    "CriterionContext",
    "Scores",
    "criterion",
    "find_importance",
    "keep",
    "needs_inputs",
    "removal_costs",
    "score_channels",
    "uses_seed",
]


def find_importance(name: str) -> Criterion:
    """An importance by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> find_importance("l2").__name__
        'l2'
    """
    found: Criterion = CRITERIA.find(name)
    return found


def keep(scores: Scores, count: int) -> Ids:
    """The ``count`` channels of the largest score at every position, ascending.

    Of equal scores the lower index stays.

    Example:
        >>> keep(np.array([[5.0, 1.0, 5.0, 7.0]]), 2).tolist()
        [[0, 3]]
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.sort(order, axis=1).astype(np.int64)

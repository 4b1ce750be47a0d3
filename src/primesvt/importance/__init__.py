"""A score for every channel of a group: the lower, the sooner it goes."""

from __future__ import annotations

import numpy as np

from primesvt.channels.graph import Ids
from primesvt.importance.activity import activity, firing_rate, membrane, taylor
from primesvt.importance.base import Criterion, CriterionContext, Scores
from primesvt.importance.magnitude import l1, l2, l2_folded, random
from primesvt.importance.obs import obs, removal_costs

__all__ = [
    "IMPORTANCES",
    "WITHOUT_INPUTS",
    "Criterion",
    "CriterionContext",
    "Scores",
    "find_importance",
    "keep",
    "removal_costs",
]

IMPORTANCES: dict[str, Criterion] = {
    "l2": l2,
    "l1": l1,
    "l2_folded": l2_folded,
    "random": random,
    "firing_rate": firing_rate,
    "activity": activity,
    "membrane": membrane,
    "taylor": taylor,
    "obs": obs,
}
WITHOUT_INPUTS = frozenset({"l2", "l1", "l2_folded", "random"})


def find_importance(name: str) -> Criterion:
    """An importance by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> find_importance("l2").__name__
        'l2'
    """
    if name not in IMPORTANCES:
        raise ValueError(f"unknown importance {name!r}; known: {', '.join(IMPORTANCES)}")
    return IMPORTANCES[name]


def keep(scores: Scores, count: int) -> Ids:
    """The ``count`` channels of the largest score at every position, ascending.

    Of equal scores the lower index stays.

    Example:
        >>> keep(np.array([[5.0, 1.0, 5.0, 7.0]]), 2).tolist()
        [[0, 3]]
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.sort(order, axis=1).astype(np.int64)

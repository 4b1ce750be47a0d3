"""A score for every channel of a group: the lower, the sooner it goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.graph import Ids

__all__ = ["IMPORTANCES", "Importance", "find_importance", "keep", "l2"]

Scores = npt.NDArray[np.float64]
Importance = Callable[[nn.Module, ChannelGraph, ChannelGroup], Scores]


def l2(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> Scores:
    """L2 norm of the filters that make each channel, ``[positions, size]``.

    The weight alone: no bias, no batch norm folded in. Squared norms are summed over all layers
    that make the channel, so q and k of a head share one score and one mask.

    Source: PrimeSVT (arXiv 2606.03428), abstract: filters of small L2 norm are removed; sums over
    tied layers are our reading (docs/method.md).

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        >>> graph = trace(net, torch.zeros(1, 2))
        >>> l2(net, graph, graph["0"]).tolist()
        [[5.0, 1.0, 10.0]]
    """
    squares = np.zeros(group.positions * group.size)
    for member in group.producers:
        weight = model.get_parameter(member.tensor).detach()
        if weight.dim() < 2:
            continue
        along = weight.movedim(member.axis, 0).reshape(weight.shape[member.axis], -1)
        norms = along.double().square().sum(1).cpu().numpy()
        ids = graph.ids(group, member)
        present = ids >= 0
        if group.positions > 1 and ids.max() < group.size:  # the positions stand on another axis
            per_channel = np.bincount(ids[present], norms[present], minlength=group.size)
            squares += np.tile(per_channel, group.positions)
        else:
            squares += np.bincount(ids[present], norms[present], minlength=squares.size)
    return np.sqrt(squares).reshape(group.positions, group.size)


IMPORTANCES: dict[str, Importance] = {"l2": l2}


def find_importance(name: str) -> Importance:
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

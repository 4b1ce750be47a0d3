"""What it costs to remove the channels of a group, one after another."""

from __future__ import annotations

import numpy as np

from primesvt.channels import ChannelGroup
from primesvt.importance.base import Evidence, Importance, Scores
from primesvt.importance.obs import eliminate, obs

__all__ = ["removal_costs"]


def removal_costs(importance: Importance, evidence: Evidence, group: ChannelGroup) -> Scores:
    """Costs of the channels in the order in which they go, ascending, ``[positions, size]``.

    They are the scores themselves. The scores of ``obs`` are but places in an order; there they are
    what the elimination paid for each channel, and no less than for the one before it.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> from primesvt.importance import find_importance
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        >>> evidence = Evidence(model=net, graph=trace(net, torch.zeros(1, 2)))
        >>> removal_costs(find_importance("l2"), evidence, evidence.graph["0"]).tolist()
        [[1.0, 5.0, 10.0]]
    """
    if importance is not obs:
        return np.sort(importance(evidence, group), axis=1)
    gone = eliminate(evidence, group)
    paid = np.take_along_axis(gone.cost, np.argsort(gone.place, axis=1), axis=1)
    return np.maximum.accumulate(paid, axis=1)

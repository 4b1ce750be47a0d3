"""Importance by optimal brain surgeon: the remaining channels make up for the removed ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from primesvt.calibration import Consumer
from primesvt.calibration.least_squares import damped
from primesvt.channels import ChannelGroup
from primesvt.importance.base import Criterion, CriterionContext, Scores, criterion, score_channels

__all__ = ["EliminationOrder", "eliminate", "obs", "product", "removal_costs"]


def removal_costs(importance: Criterion, evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """Costs of removing a group's channels one after another, ascending, ``[positions, size]``.

    They are the scores themselves. The scores of ``obs`` are but places in an order; there they are
    what the elimination paid for each channel, and no less than for the one before it.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> from primesvt.importance import find_importance
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        >>> evidence = CriterionContext(model=net, graph=trace(net, torch.zeros(1, 2)))
        >>> removal_costs(find_importance("l2"), evidence, evidence.graph["0"]).tolist()
        [[1.0, 5.0, 10.0]]
    """
    if importance is not obs:
        return np.sort(score_channels(importance, evidence, group), axis=1)
    gone = eliminate(evidence, group)
    paid = np.take_along_axis(gone.cost, np.argsort(gone.place, axis=1), axis=1)
    return np.maximum.accumulate(paid, axis=1)


BLOCKS = 128
PATCH_BLOCKS = 32
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class EliminationOrder:
    """The order in which a group loses its channels, and the costs; both ``[positions, size]``.

    ``place`` is a channel's place in that order at its position, ``cost`` what its removal cost
    when it went: a share of what the readers get, or of the attention map.
    """

    place: Scores
    cost: Scores


@criterion("obs")
def obs(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """The removal order of optimal brain surgeon: the rest compensates, ``[positions, size]``.

    Greedy optimal brain surgeon: again and again those channels go whose removal, after a least-
    squares update of all others, costs the readers least: ``||w_c||^2 / [C^-1]_cc`` with the damped
    covariance ``C`` of what the reader sees; in a larger kernel a channel is a block of it. Weights
    and inverse are updated each time. One channel goes at a time, of wide groups a ``BLOCKS``-th
    part of what is left, a ``PATCH_BLOCKS``-th in larger kernels. The score is the place in that
    order, at every position (head) its own. Costs of several readers are added, each over its
    total. Where only a product reads the channels: ``product``.

    Source: Hassibi and Stork, "Second order derivatives for network pruning" (NIPS 1992), equations
    5 and 6, for whole input channels of a layer as in Kurtic et al., ZipLM (arXiv 2302.04089).
    """
    return eliminate(evidence, group).place


def product(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """The removal order of channels that only a product of spikes reads (q and k).

    Greedy: again and again the channel goes with which the removed part of the attention map
    ``sum_c q_c k_c^T`` has the least squared norm. Nothing compensates inside a product of spikes.
    """
    return _from_product(evidence, group).place


def eliminate(evidence: CriterionContext, group: ChannelGroup) -> EliminationOrder:
    """The order of ``obs``, or of ``product`` without readers, with what every removal cost."""
    readers = evidence.seen.readers[group.name]
    if not readers:
        return _from_product(evidence, group)
    fronts = [_ConsumerState.of(evidence, reader) for reader in readers]
    order = np.full((group.positions, group.size), np.inf)
    costs = np.zeros_like(order)
    blocks = BLOCKS if all(reader.taps == 1 for reader in readers) else PATCH_BLOCKS
    gone = 0
    while gone < group.size:
        block = max(1, (group.size - gone) // blocks)
        cost = np.sum([front.cost(group) for front in fronts], axis=0)
        cost[np.isfinite(order)] = np.inf
        chosen = np.argsort(cost, axis=1, kind="stable")[:, :block]
        np.put_along_axis(order, chosen, gone + np.arange(block, dtype=float)[None], axis=1)
        np.put_along_axis(costs, chosen, np.take_along_axis(cost, chosen, axis=1), axis=1)
        gone += block
        starts = np.arange(group.positions)[:, None] * group.size
        for front in fronts:
            front.remove((starts + chosen).ravel())
    return EliminationOrder(place=order, cost=costs)


def _from_product(evidence: CriterionContext, group: ChannelGroup) -> EliminationOrder:
    """The order of ``product`` with what every removal cost."""
    grams = evidence.seen.products(group).numpy()
    order = np.zeros((group.positions, group.size))
    costs = np.zeros_like(order)
    for position, gram in enumerate(grams):
        cost, alive = gram.diagonal().copy(), np.ones(group.size, dtype=bool)
        for step in range(group.size):
            channel = int(np.where(alive, cost, np.inf).argmin())
            alive[channel] = False
            order[position, channel] = step
            costs[position, channel] = cost[channel]
            cost += 2 * gram[:, channel]
    return EliminationOrder(place=order, cost=costs / max(float(grams.sum()), _TINY))


@dataclass(kw_only=True)
class _ConsumerState:
    """A layer that reads the group, during the elimination: its inputs left and their weights."""

    ids: Tensor
    weights: Tensor
    inverse: Tensor
    scale: float
    taps: int = 1

    @classmethod
    def of(cls, evidence: CriterionContext, reader: Consumer) -> _ConsumerState:
        covariance = evidence.seen.inputs(reader).covariance
        weights = _compact(reader.inputs(evidence.model))
        scale = float((weights * (covariance @ weights)).sum())
        return cls(
            ids=torch.from_numpy(reader.ids),
            weights=weights,
            inverse=torch.linalg.inv(damped(covariance, reader.groups)),
            scale=max(scale, _TINY),
            taps=reader.taps,
        )

    def cost(self, group: ChannelGroup) -> Scores:
        """Costs of removing each channel next, as shares of the reader's output variance."""
        each = self._each() / self.scale
        total = torch.zeros(group.positions * group.size, dtype=torch.float64)
        own = self.ids >= 0
        total.index_add_(0, self.ids[own], each[own])
        return total.reshape(group.positions, group.size).numpy()

    def _each(self) -> Tensor:
        """``w^T [C^-1]_cc^-1 w`` of every input channel, all its taps as one block."""
        if self.taps == 1:
            return self.weights.square().sum(1) / self.inverse.diagonal().clamp(min=_TINY)
        blocks = self.inverse.unflatten(0, (-1, self.taps)).unflatten(2, (-1, self.taps))
        own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        own = own + _TINY * torch.eye(self.taps, dtype=own.dtype)
        weights = self.weights.unflatten(0, (-1, self.taps))
        total: Tensor = (weights * torch.linalg.solve(own, weights)).sum((1, 2))
        return total

    def remove(self, channels: npt.NDArray[np.int64]) -> None:
        """Take out the inputs of some channels, and let the others compensate."""
        out = torch.isin(self.ids, torch.from_numpy(channels))
        inputs = out.repeat_interleave(self.taps)
        places, left = inputs.nonzero().flatten(), (~inputs).nonzero().flatten()
        columns = self.inverse[:, places]
        pivots = columns[places]
        pivots.diagonal().add_(_TINY)
        update = torch.linalg.solve(pivots, torch.cat([self.weights[places], columns.T], dim=1))
        width = self.weights.shape[1]
        kept = columns[left]
        self.weights = self.weights[left] - kept @ update[:, :width]
        self.inverse = self.inverse[left][:, left] - kept @ update[:, width:][:, left]
        self.ids = self.ids[~out]


def _compact(weights: Tensor) -> Tensor:
    """Weights with the same products among inputs, and no more columns than rows (inputs)."""
    if weights.shape[1] <= weights.shape[0]:
        return weights.clone()
    factor: Tensor = torch.linalg.qr(weights.T, mode="r").R
    return factor.T.contiguous()

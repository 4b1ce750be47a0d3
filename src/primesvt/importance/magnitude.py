"""Importance by weights alone: no inputs are needed."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.graph import Member
from primesvt.importance.base import CriterionContext, Scores, criterion
from primesvt.models.forward import applied_weight
from primesvt.models.norms import affine_of, is_norm

__all__ = ["l1", "l2", "l2_folded", "random"]


@criterion("l2", needs_inputs=False)
def l2(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """L2 norm of the filters that make each channel, ``[positions, size]``.

    The weight alone: no bias, no batch norm folded in. Squared norms are summed over all layers
    that make the channel, so q and k of a head share one score and one mask.

    Source: PrimeSVT (arXiv 2606.03428), abstract: filters of small L2 norm are removed; sums over
    tied layers are our reading (docs/method.md).

    Example:
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
        >>> evidence = CriterionContext(model=net, graph=trace(net, torch.zeros(1, 2)))
        >>> l2(evidence, evidence.graph["0"]).tolist()
        [[5.0, 1.0, 10.0]]
    """
    squares = _over_producers(evidence, group, lambda rows, _: rows.square().sum(1))
    return np.sqrt(squares)


@criterion("l1", needs_inputs=False)
def l1(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """L1 norm of the filters that make each channel, summed over tied layers.

    Source: Li et al., "Pruning filters for efficient ConvNets" (arXiv 1608.08710), section 3.1.
    """
    return _over_producers(evidence, group, lambda rows, _: rows.abs().sum(1))


@criterion("l2_folded", needs_inputs=False)
def l2_folded(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """L2 norm of the filters after folding in the batch norm that follows each layer.

    A batch norm stands between a filter and its neuron: the same filter matters more where the norm
    multiplies it by ``weight / sqrt(variance + eps)``. Norms of the same group and the same length
    are matched with their layers by name order; a layer without one is taken as it is.
    """
    squares = _over_producers(
        evidence,
        group,
        lambda rows, member: (rows * _gain(evidence, group, member)[:, None]).square().sum(1),
    )
    return np.sqrt(squares)


@criterion("random", needs_inputs=False, uses_seed=True)
def random(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """Seeded uniform draws: the control for every other importance."""
    generator = np.random.default_rng([evidence.seed, crc32(group.name.encode())])
    return generator.random((group.positions, group.size))


def _over_producers(evidence: CriterionContext, group: ChannelGroup, measure: object) -> Scores:
    """Sum a measure of the filters ``[channels, ...]`` over all layers that make the channels."""
    assert callable(measure)
    total = np.zeros(group.positions * group.size)
    for member in group.producers:
        weight = applied_weight(evidence.model, member.tensor)
        if weight.dim() < 2:
            continue
        rows = weight.movedim(member.axis, 0).reshape(weight.shape[member.axis], -1).double()
        values = measure(rows, member).cpu().numpy()
        ids = evidence.graph.ids(group, member)
        present = ids >= 0
        if group.positions > 1 and ids.max() < group.size:  # the positions stand on another axis
            per_channel = np.bincount(ids[present], values[present], minlength=group.size)
            total += np.tile(per_channel, group.positions)
        else:
            total += np.bincount(ids[present], values[present], minlength=total.size)
    return total.reshape(group.positions, group.size)


def _gain(evidence: CriterionContext, group: ChannelGroup, member: Member) -> Tensor:
    """The factor by which the batch norms right behind a layer multiply each of its channels."""
    gain = torch.ones(evidence.graph.shape(member.tensor)[member.axis], dtype=torch.float64)
    for name in _norms_behind(evidence.model, evidence.graph, group, member):
        norm = evidence.model.get_submodule(name)
        assert is_norm(norm)
        affine = affine_of(norm)
        if affine is not None:
            gain = gain * affine[0].cpu()
    return gain


def _norms_behind(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup, member: Member
) -> list[str]:
    """Norms among the group's followers that stand between this producer and the next one."""
    makers = [m.module for m in group.producers]
    order = [name for name, _ in model.named_modules()]
    start = order.index(member.module)
    later = [order.index(name) for name in makers if order.index(name) > start]
    end = min(later, default=len(order))
    names = dict.fromkeys(m.module for m in group.followers if m.axis == 0)
    return [
        name
        for name in names
        if start < order.index(name) < end and is_norm(model.get_submodule(name))
    ]

"""Unstructured magnitude pruning: what it would save, as a control for removing whole channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.models import reset
from primesvt.models.forward import copy_of, unwrap
from primesvt.profiling.memory import parameter_bytes, parameter_count
from primesvt.profiling.timing import Latency, Pace, measure

__all__ = ["SCOPES", "SparseCosts", "sparse_costs", "unstructured", "weights_of"]

SCOPES = ("global", "layer")
INDEX_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class SparseCosts:
    """What zeros in the weights save.

    Attributes:
        sparsity: zeros in the weights that may be zeroed, as a share of all parameters.
        dense_bytes: all parameters as they are held and computed with, zeros included.
        csr_bytes: the same with those weights as compressed sparse rows: every value that is not
            zero, its column in 4 bytes, and 4 bytes a row. What no kernel here can compute with.
        time_ratio: median time of a forward pass over that of the other network, measured in turn.
        times: of both networks.
    """

    sparsity: float
    dense_bytes: int
    csr_bytes: int
    time_ratio: float
    times: tuple[Latency, Latency]


def unstructured(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Iterable[ChannelGroup],
    sparsity: float,
    *,
    scope: str = "global",
) -> nn.Module:
    """A copy whose smallest weights are zero; shapes stay as they are.

    Args:
        model: the unpruned network; not changed, but its neurons are reset.
        graph: its channel graph.
        groups: those that a structured plan may cut; the weights of two or more axes that hold
            their channels are the ones that may become zero.
        sparsity: zeros as a share of *all* parameters of the model, as a memory saving is counted.
        scope: ``global``, by absolute value over all these weights, or ``layer``, the same share
            of each.

    Raises:
        ValueError: a sparsity below 0, or more than these weights can give; an unknown scope.

    Source: Han et al., "Learning both weights and connections for efficient neural networks"
        (arXiv 1506.02626), in one shot and without retraining.

    Example:
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))  # 44 parameters
        >>> graph = trace(net, torch.zeros(1, 4))
        >>> sparse = unstructured(net, graph, graph.prunable(), 0.5)
        >>> sum(int((weight == 0).sum()) for weight in sparse.parameters())
        22
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    model = unwrap(model)
    reset(model)
    copied = copy_of(model)
    weights = list(weights_of(copied, graph, groups).values())
    able, count = sum(weight.numel() for weight in weights), parameter_count(copied)
    if not 0 <= sparsity <= able / count:
        raise ValueError(
            f"sparsity is {sparsity:g}, but must lie between 0 and {able / count:.4g}, the share of"
            " the parameters that these groups have in their weights"
        )
    zeros = round(sparsity * count)
    if scope == "global":
        _zero(weights, zeros)
    else:
        for weight in weights:
            _zero([weight], round(zeros * weight.numel() / able))
    return copied


def weights_of(
    model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]
) -> dict[str, nn.Parameter]:
    """Weights of two or more axes that hold channels of some groups, each once, by name."""
    names = {member.tensor: None for group in groups for member in group.members}
    found: dict[str, nn.Parameter] = {}
    known = dict(model.named_parameters())  # a shared one once
    for name in names:
        if name in known and known[name].ndim >= 2:
            found[name] = known[name]
    return found


def sparse_costs(
    sparse: nn.Module,
    dense: nn.Module,
    graph: ChannelGraph,
    groups: Iterable[ChannelGroup],
    inputs: tuple[Any, ...],
    *,
    batch: int = 32,
    pace: Pace | None = None,
) -> SparseCosts:
    """Storage and time of a network with zeros in its weights, against the unpruned one.

    Args:
        sparse: what ``unstructured`` gave.
        dense: the unpruned network.
        graph: its channel graph.
        groups: those that were given there.
        inputs: as the networks take them, for the timing.
        batch: samples in a timed pass.
        pace: how long to measure.
    """
    weights = list(weights_of(sparse, graph, groups).values())
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    held = parameter_bytes(sparse)
    plain = sum(weight.numel() * weight.element_size() for weight in weights)
    took = measure({"sparse": sparse, "dense": dense}, inputs, batches=(batch,), pace=pace)
    first, other = took["sparse"][0], took["dense"][0]
    return SparseCosts(
        sparsity=zeros / parameter_count(sparse),
        dense_bytes=held,
        csr_bytes=held - plain + sum(map(_csr_bytes, weights)),
        time_ratio=first.milliseconds / other.milliseconds,
        times=(first, other),
    )


def _zero(weights: list[nn.Parameter], zeros: int) -> None:
    """Zero the smallest values of some tensors, of equal ones the first."""
    with torch.no_grad():
        sizes = torch.cat([weight.detach().abs().flatten().double() for weight in weights])
        sizes[torch.argsort(sizes, stable=True)[:zeros]] = -1.0
        for weight, part in zip(weights, sizes.split([w.numel() for w in weights]), strict=True):
            weight[part.reshape(weight.shape) < 0] = 0.0


def _csr_bytes(weight: Tensor) -> int:
    """Bytes of a weight as compressed sparse rows, output channels being the rows."""
    values = int((weight != 0).sum())
    return values * (weight.element_size() + INDEX_BYTES) + (len(weight) + 1) * INDEX_BYTES

"""Layers that contract the channels of a group, and which of their inputs are whose."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from primesvt.calibration.patches import taps_of
from primesvt.calibration.wiring import LAYERS, Layer
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.graph import Ids, Member

__all__ = ["Reader", "readers_of"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A convolution or linear layer, called as a module, that reads a group's channels.

    Attributes:
        module: its name.
        tensor: the name of its weight ``[out, in / groups, ...]``.
        groups: of a grouped convolution; 1 otherwise.
        ids: for every input channel ``position * size + channel`` of the group, or -1.
        taps: places of the kernel at which an input is told apart; 1 for channels as a whole.
    """

    module: str
    tensor: str
    groups: int
    ids: Ids
    taps: int = 1

    def layer(self, model: nn.Module) -> Layer:
        """The layer in a model of the widths that the graph was traced at."""
        layer = model.get_submodule(self.module)
        assert isinstance(layer, LAYERS)
        return layer

    def columns(self, model: nn.Module) -> Tensor:
        """Weights by input channel: ``[in, out / groups * kernel]``, float64."""
        weight = self.layer(model).weight.detach().double().cpu()
        rows = weight.shape[0] // self.groups
        blocks = weight.reshape(self.groups, rows, weight.shape[1], -1)
        return blocks.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)

    def inputs(self, model: nn.Module) -> Tensor:
        """Weights by what an output sees, taps apart: ``[in * taps, ...]``, float64."""
        if self.taps == 1:
            return self.columns(model)
        weight = self.layer(model).weight.detach().double().cpu()
        return weight.flatten(1).T.contiguous()

    def per_channel(self, values: Tensor, group: ChannelGroup) -> npt.NDArray[np.float64]:
        """Sum values ``[in]`` over the inputs of each of the group's channels."""
        present = self.ids >= 0
        found = np.bincount(
            self.ids[present],
            values.double().cpu().numpy()[present],
            minlength=group.positions * group.size,
        )
        return found.astype(np.float64).reshape(group.positions, group.size)


def readers_of(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> tuple[Reader, ...]:
    """The layers that contract a group's channels, in forward order.

    A depthwise convolution reads nothing, it follows. Weights used outside of a ``Conv`` or
    ``Linear`` module are left out: what enters them is not seen.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> graph = trace(net, torch.zeros(1, 4))
        >>> [reader.module for reader in readers_of(net, graph, graph["0"])]
        ['2']
    """
    found = (_reader(model, graph, group, member) for member in group.readers)
    return tuple(reader for reader in found if reader is not None)


def _reader(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup, member: Member
) -> Reader | None:
    layer = model.get_submodule(member.module)
    if not isinstance(layer, LAYERS) or member.tensor != f"{member.module}.weight":
        return None
    if member.axis != 1:
        return None
    groups = getattr(layer, "groups", 1)
    ids = graph.ids(group, member)
    if groups > 1:
        if prod(group.fronts) != groups or len(ids) != group.size:
            return None  # channels of the convolution's groups stand in an order not known here
        ids = np.arange(group.positions * group.size, dtype=np.int64)
    return Reader(
        module=member.module, tensor=member.tensor, groups=groups, ids=ids, taps=taps_of(layer)
    )

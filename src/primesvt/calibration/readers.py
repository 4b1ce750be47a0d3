"""Layers that read the channels of a group, and which of their inputs are its channels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.graph import Ids, Member
from primesvt.models.forward import LAYERS, Layer

__all__ = ["LARGEST", "Consumer", "patches", "readers_of", "taps_of"]


LARGEST = 4096  # inputs of one output: their covariance takes 8 bytes times the square of it
ROWS = 2**14  # patches per call: neighbours hardly differ, so that more of them tell little
IMAGES = 128  # that they come from, over all samples and time steps


def taps_of(layer: nn.Module) -> int:
    """Number of kernel positions at which a layer's inputs are distinguished; 1 if they are not.

    They are distinguished for ungrouped 2-D convolutions that are padded by zeros.

    Example:
        >>> taps_of(nn.Conv2d(8, 8, 3, padding=1)), taps_of(nn.Conv2d(8, 8, 3, groups=8))
        (9, 1)
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or isinstance(layer.padding, str):
        return 1
    if layer.padding_mode != "zeros":
        return 1
    taps = layer.weight.shape[2:].numel()
    return taps if layer.in_channels * taps <= LARGEST else 1


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Patches under a kernel, as rows ``[n, in * taps]``; of many an evenly spread sample.

    Example:
        >>> patches(nn.Conv2d(2, 4, 3, padding=1), torch.ones(1, 2, 5, 5)).shape
        torch.Size([25, 18])
    """
    images = x.detach().flatten(0, -4) if x.ndim > 3 else x.detach()[None]
    count = min(len(images), IMAGES)
    chosen = torch.linspace(0, len(images) - 1, count).round().long().tolist()
    return torch.cat([_rows(layer, images[n, None], ROWS // count, n) for n in chosen])


def _rows(layer: nn.Conv2d, image: Tensor, most: int, start: int) -> Tensor:
    """Patches of one image, at most ``most``; ``start`` shifts the sample."""
    assert not isinstance(layer.padding, str)
    columns = functional.unfold(
        image, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )[0].T
    if len(columns) <= most:
        return columns
    places = torch.arange(most, device=image.device) * len(columns) // most
    return columns[(places + start) % len(columns)]


@dataclass(frozen=True, kw_only=True)
class Consumer:
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
        """Weights by input channel and kernel position: ``[in * taps, ...]``, float64."""
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


def readers_of(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> tuple[Consumer, ...]:
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
) -> Consumer | None:
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
    return Consumer(
        module=member.module, tensor=member.tensor, groups=groups, ids=ids, taps=taps_of(layer)
    )

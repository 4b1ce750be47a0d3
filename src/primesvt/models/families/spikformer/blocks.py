"""Spikformer's own layers: the convolutional position embedding, and linear layers on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN
from primesvt.models.neurons import Spike, lif

__all__ = ["LinearBN", "PositionEmbedding"]


class PositionEmbedding(ConvBN):
    """Position embedding by convolution: its spikes are added to those of the patches.

    ``[T, B, C, H, W]`` to the same shape.

    Example:
        >>> PositionEmbedding(4)(torch.zeros(2, 1, 4, 5, 3)).shape
        torch.Size([2, 1, 4, 5, 3])

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425), relative position embedding; official
    code, imagenet/model.py.
    """

    def __init__(self, dim: int, *, spike: Spike = lif) -> None:
        super().__init__(dim, dim, 3)
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        position: Tensor = self.lif(super().forward(x))
        return x + position


class LinearBN(nn.Module):
    """Linear layer on every token of an image, and batch normalisation over all of them.

    ``[T, B, C, H, W]`` to ``[T, B, C', H, W]``: a 1x1 convolution whose weight has two axes.

    Example:
        >>> LinearBN(3, 8)(torch.zeros(2, 1, 3, 4, 5)).shape
        torch.Size([2, 1, 8, 4, 5])

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425); official code, cifar10/model.py.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1).flatten(2).transpose(1, 2)
        normed: Tensor = self.bn(self.linear(tokens).transpose(1, 2))
        return torch.unflatten(torch.unflatten(normed, -1, x.shape[-2:]), 0, x.shape[:2])

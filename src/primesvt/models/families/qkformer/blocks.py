"""QKFormer's own blocks: patch embedding with a spiking shortcut, Q-K token attention."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN, MaxPool
from primesvt.models.neurons import Spike, lif

__all__ = ["AcrossImages", "ConvSpike", "PatchEmbed", "TokenQKAttention"]


class ConvSpike(ConvBN):
    """Convolution, batch norm, pooling where asked, then the neuron.

    ``[T, B, C, H, W]`` to ``[T, B, C', H', W']``; pooling halves the image, rounded up.

    Example:
        >>> ConvSpike(3, 8, 3, pool=True)(torch.zeros(2, 1, 3, 6, 5)).shape
        torch.Size([2, 1, 8, 3, 3])

    Source: Zhou et al., "QKFormer" (arXiv 2403.16552), and its official code.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        pool: bool = False,
        spike: Spike = lif,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride)
        self.pool = MaxPool() if pool else nn.Identity()
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.lif(self.pool(super().forward(x)))
        return spikes


class PatchEmbed(nn.Module):
    """Patch embedding with deformed shortcut: two paths of spikes from one fork, added.

    ``[T, B, C, H, W]`` to ``[T, B, C', H', W']``.

    Args:
        entry: layers in front of the fork; may be empty.
        body: layers behind it.
        shortcut: the layer beside them.

    Example:
        >>> body, shortcut = ConvSpike(4, 8, 3, pool=True), ConvSpike(4, 8, 1, stride=2)
        >>> PatchEmbed([], [body], shortcut)(torch.zeros(2, 1, 4, 6, 6)).shape
        torch.Size([2, 1, 8, 3, 3])

    Source: Zhou et al., "QKFormer" (arXiv 2403.16552), patch embedding with deformed shortcut.
    """

    def __init__(
        self, entry: Iterable[nn.Module], body: Iterable[nn.Module], shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.entry = nn.Sequential(*entry)
        self.body = nn.Sequential(*body)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        fork = self.entry(x)
        out: Tensor = self.body(fork) + self.shortcut(fork)
        return out


class TokenQKAttention(nn.Module):
    """Q-K token attention: per head, a spike for every token where enough of q fires gates k.

    ``[T, B, C, H, W]`` to the same shape, spikes.

    Args:
        dim: channels of the stream.
        heads: number of attention heads.
        threshold: of the neuron that sees the sum of q over the channels of a head.
        spike: makes the neurons.

    Example:
        >>> TokenQKAttention(8, heads=2)(torch.zeros(2, 1, 8, 3, 4)).shape
        torch.Size([2, 1, 8, 3, 4])

    Source: Zhou et al., "QKFormer" (arXiv 2403.16552), Q-K token attention.
    """

    def __init__(self, dim: int, *, heads: int, threshold: float = 0.5, spike: Spike = lif) -> None:
        super().__init__()
        self.heads = heads
        self.q = ConvBN(dim, dim, dims=1)
        self.q_lif = spike()
        self.k = ConvBN(dim, dim, dims=1)
        self.k_lif = spike()
        self.attn_lif = spike(threshold)
        self.proj = ConvBN(dim, dim, bias=True, dims=1)
        self.proj_lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        q = torch.unflatten(self.q_lif(self.q(x)), 2, (self.heads, -1))
        k = torch.unflatten(self.k_lif(self.k(x)), 2, (self.heads, -1))
        gate = self.attn_lif(q.sum(3, keepdim=True))
        out: Tensor = self.proj_lif(self.proj((gate * k).flatten(2, 3)))
        return out


class AcrossImages(nn.Module):
    """A neuron that takes the images of a batch for further time steps.

    ``[T, B, ...]`` to the same shape: the membrane runs over ``T * B`` steps, first all images of
    time step 0, then all of step 1. So an image's spikes depend on those before it in the batch.

    Example:
        >>> neuron = AcrossImages(lif)
        >>> neuron(torch.tensor([[1.5, 1.5, 1.5]])).tolist()
        [[0.0, 1.0, 0.0]]

    Source: official code of QKFormer, spiking self attention; reported there as issue 14.
    """

    def __init__(self, spike: Spike = lif) -> None:
        super().__init__()
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(self.lif(x.flatten(0, 1)), 0, x.shape[:2])

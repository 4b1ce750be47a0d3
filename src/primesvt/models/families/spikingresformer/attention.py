"""Dual spike self-attention: its scales follow measured firing rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN
from primesvt.models.neurons import Spike

__all__ = ["DualSpikeAttention"]

_MOMENTUM = 0.999


class DualSpikeAttention(nn.Module):
    """Dual spike self-attention with its shortcut: spikes meet a transform of spikes, twice.

    ``[T, B, C, H, W]`` to the same shape. One convolution over patches makes two halves per head;
    the first meets the input spikes (``y1^T s``, an attention map of patches by pixels), the second
    meets the spikes of that map. Each product is divided by the root of its length times the
    firing rate of its spikes: a running mean per head, measured in training and kept in buffers
    ``[1, 1, heads, 1, 1]``, which the first training batch fills. Where a rate is zero (a model
    that was never trained, a head that never fired) the division has no meaning: the official code
    gets NaN, which no threshold lets pass; here the product is zero, which passes none either.

    Args:
        dim: channels of the stream.
        heads: number of attention heads.
        patch: size and stride of the convolution over patches.
        spike: makes the neurons.

    Attributes:
        tokens: number of patches that the second scale uses, of the image size that the model is
            made for; ``None`` until the model knows it.

    Example:
        >>> from primesvt.models import lif
        >>> attention = DualSpikeAttention(8, heads=2, patch=2, spike=lif)
        >>> attention.tokens = 4
        >>> attention(torch.zeros(3, 1, 8, 4, 4)).shape
        torch.Size([3, 1, 8, 4, 4])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), DSSA;
    github.com/xyshi2000/SpikingResformer, models/spikingresformer.py.
    """

    firing_rate_x: Tensor
    firing_rate_attn: Tensor

    def __init__(self, dim: int, *, heads: int, patch: int, spike: Spike) -> None:
        super().__init__()
        self.heads = heads
        self.patch = patch
        self.width = dim // heads
        self.tokens: int | None = None
        self.lif = spike()
        self.w = ConvBN(dim, 2 * dim, patch, stride=patch, padding=0)
        self.attn_lif = spike()
        self.out_lif = spike()
        self.proj = ConvBN(dim, dim)
        self.register_buffer("firing_rate_x", torch.zeros(1, 1, heads, 1, 1))
        self.register_buffer("firing_rate_attn", torch.zeros(1, 1, heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is None:
            raise ValueError("the image size is not known yet: call model.set_img_size((H, W))")
        image = self.lif(x)
        spikes = self._split(image)
        mixed = self._split(self.w(image))
        channels = spikes.shape[3]  # pruned or not, the first half is as wide as its partner
        y1, y2 = mixed.split([channels, mixed.shape[3] - channels], dim=3)
        self._measure(self.firing_rate_x, spikes)
        scores = y1.transpose(-2, -1) @ spikes * _scale(self.firing_rate_x, self.width)
        attention = self.attn_lif(scores)
        self._measure(self.firing_rate_attn, attention)
        out = y2 @ attention * _scale(self.firing_rate_attn, self.tokens)
        branch: Tensor = self.proj(self.out_lif(_image(out, x)))
        return x + branch

    def _split(self, x: Tensor) -> Tensor:
        """``[T, B, C, H, W]`` to ``[T, B, heads, C / heads, tokens]``."""
        return torch.unflatten(x.flatten(-2), 2, (self.heads, -1))

    def _measure(self, rate: Tensor, spikes: Tensor) -> None:
        if not self.training:
            return
        with torch.no_grad():
            seen = spikes.mean((0, 1, 3, 4), keepdim=True).to(rate.dtype)
            rate.copy_(torch.where((rate == 0).all(), seen, rate.lerp(seen, 1 - _MOMENTUM)))


def _scale(rate: Tensor, length: int) -> Tensor:
    return torch.where(rate > 0, (rate * length).rsqrt(), torch.zeros_like(rate))


def _image(x: Tensor, like: Tensor) -> Tensor:
    """``[T, B, heads, C / heads, tokens]`` to ``[T, B, C, H, W]``."""
    return torch.unflatten(x.flatten(2, 3), -1, like.shape[-2:])

"""Spiking self-attention, and the re-parameterisable convolutions that make its q, k and v."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from primesvt.models.neurons import Spike, lif

__all__ = ["PaddedBN", "RepConv", "SpikingSelfAttention"]


class PaddedBN(nn.Module):
    """Batch normalisation, then one pixel of padding with the value that the norm gives for zero.

    ``[N, C, H, W]`` to ``[N, C, H + 2, W + 2]``. The padding value uses the running statistics, in
    training too, and no gradient flows through it.

    Example:
        >>> PaddedBN(2)(torch.ones(1, 2, 3, 3)).shape
        torch.Size([1, 2, 5, 5])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(x)
        border = functional.pad(normed.new_zeros(normed.shape[-2:]), (1, 1, 1, 1), value=1.0)
        # Adding zero inside and to zero outside keeps both exact, without writing in place.
        return functional.pad(normed, (1, 1, 1, 1)) + border * self._of_zero().to(normed.dtype)

    def _of_zero(self) -> Tensor:
        """The value that the norm gives for a zero input, ``[1, C, 1, 1]``."""
        mean, var = self.bn.running_mean, self.bn.running_var
        if mean is None or var is None:
            raise ValueError("PaddedBN needs running statistics: keep track_running_stats=True")
        with torch.no_grad():
            value = self.bn.bias - mean * self.bn.weight / torch.sqrt(var + self.bn.eps)
        return value.view(1, -1, 1, 1)


class RepConv(nn.Module):
    """Re-parameterisable convolution: 1x1, padded norm, depthwise 3x3, 1x1, and two norms.

    ``[T, B, C, H, W]`` to ``[T, B, C', H, W]``.

    Example:
        >>> RepConv(4, 6)(torch.zeros(2, 1, 4, 5, 5)).shape
        torch.Size([2, 1, 6, 5, 5])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), RepConv.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(inputs, inputs, 1, bias=False)
        self.pad = PaddedBN(inputs)
        self.depthwise = nn.Conv2d(inputs, inputs, 3, groups=inputs, bias=False)
        self.outer = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.outer_bn = nn.BatchNorm2d(outputs)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        padded = self.pad(self.inner(x.flatten(0, 1)))
        merged: Tensor = self.bn(self.outer_bn(self.outer(self.depthwise(padded))))
        return torch.unflatten(merged, 0, x.shape[:2])


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention, linear in the number of tokens: ``scale * q (k^T v)``.

    ``[T, B, C, H, W]`` to the same shape. ``scale`` is fixed, whatever the widths become;
    ``projection`` makes the layers in front of q, k, v and behind the attention.

    Args:
        dim: channels of the stream.
        heads: number of attention heads.
        scale: factor of the attention, from the original width.
        threshold: of the neuron behind the attention.
        projection: ``projection(inputs, outputs)`` makes a layer on images.
        out_projection: the same for the layer behind the attention, where that one is different.
        spike: makes the neurons.
        v_dim: channels of v, ``dim`` when not given.
        out_spike: for a stream of summed spikes (SEW): makes the neuron behind the projection, and
            there is none in front of q, k and v.

    Example:
        >>> attention = SpikingSelfAttention(8, heads=2, scale=0.125, threshold=0.5)
        >>> attention(torch.zeros(2, 1, 8, 3, 4)).shape
        torch.Size([2, 1, 8, 3, 4])

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425), spiking self attention; with membrane
    shortcuts: Spike-driven Transformer V2 (arXiv 2404.03663), the attention called SDSA-3.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        scale: float,
        threshold: float = 0.5,
        projection: Callable[[int, int], nn.Module] = RepConv,
        out_projection: Callable[[int, int], nn.Module] | None = None,
        spike: Spike = lif,
        v_dim: int | None = None,
        out_spike: Spike | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        inner = dim if v_dim is None else v_dim
        self.lif = nn.Identity() if out_spike else spike()
        self.q = projection(dim, dim)
        self.q_lif = spike()
        self.k = projection(dim, dim)
        self.k_lif = spike()
        self.v = projection(dim, inner)
        self.v_lif = spike()
        self.attn_lif = spike(threshold)
        self.proj = (out_projection or projection)(inner, dim)
        self.proj_lif = out_spike() if out_spike else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif(x)
        q = self._split(self.q_lif(self.q(spikes)))
        k = self._split(self.k_lif(self.k(spikes)))
        v = self._split(self.v_lif(self.v(spikes)))
        mixed = (v @ k.transpose(-2, -1)) @ q * self.scale
        image = torch.unflatten(mixed.flatten(2, 3), -1, x.shape[-2:])
        out: Tensor = self.proj_lif(self.proj(self.attn_lif(image)))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """``[T, B, C, H, W]`` to ``[T, B, heads, C / heads, tokens]``."""
        return torch.unflatten(x.flatten(-2), 2, (self.heads, -1))

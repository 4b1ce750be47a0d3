"""Spike-driven Transformer: patch splitting, self-attention without products, and the MLP."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN, MaxPool
from primesvt.models.neurons import Spike, lif

__all__ = ["PatchSplitting", "ResidualMLP", "SpikeDrivenAttention", "TokenChannelPool", "unread"]


def unread(spike: Spike, name: str) -> dict[str, nn.Parameter]:
    """Parameters of a neuron that the official code makes and never runs, under its name.

    Example:
        >>> from primesvt.models import plif
        >>> list(unread(plif, "rpe_lif")), list(unread(lif, "rpe_lif"))
        (['rpe_lif'], [])
    """
    leak = getattr(spike(), "w", None)
    return {} if leak is None else {name: leak}


class PatchSplitting(nn.Module):
    """Four convolutions that make the stream, and a relative position embedding added to it.

    ``[T, B, C, H, W]`` to ``[T, B, C', H', W']``, half the size for every ``True`` in ``pools``.
    The first three convolutions pool their spikes, the last one its membrane potential.

    Example:
        >>> split = PatchSplitting((3, 4, 8, 16, 32), pools=(False, False, True, True))
        >>> split(torch.zeros(2, 1, 3, 16, 12)).shape
        torch.Size([2, 1, 32, 4, 3])

    Source: Yao et al., "Spike-driven Transformer" (arXiv 2307.01694), spiking patch splitting;
    github.com/BICLab/Spike-Driven-Transformer, module/sps.py.
    """

    def __init__(
        self, widths: tuple[int, ...], *, pools: tuple[bool, ...], spike: Spike = lif
    ) -> None:
        super().__init__()
        conv = partial(ConvBN, kernel=3)
        pool0, pool1, pool2, pool3 = (MaxPool() if pool else nn.Identity() for pool in pools)
        self.conv0, self.lif0, self.pool0 = conv(*widths[0:2]), spike(), pool0
        self.conv1, self.lif1, self.pool1 = conv(*widths[1:3]), spike(), pool1
        self.conv2, self.lif2, self.pool2 = conv(*widths[2:4]), spike(), pool2
        self.conv3, self.pool3, self.lif3 = conv(*widths[3:5]), pool3, spike()
        self.rpe = conv(widths[4], widths[4])
        self.unused = nn.ParameterDict(unread(spike, "rpe_lif"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool0(self.lif0(self.conv0(x)))
        x = self.pool1(self.lif1(self.conv1(x)))
        x = self.pool2(self.lif2(self.conv2(x)))
        x = self.pool3(self.conv3(x))
        position: Tensor = self.rpe(self.lif3(x))
        return x + position


def _dilation() -> nn.Module:
    return nn.MaxPool3d((1, 3, 3), 1, (0, 1, 1))


class TokenChannelPool(nn.Module):
    """Max-pooling over the plane of tokens and channels of a head, as event models do.

    ``[T, B, C, H, W]`` to the same shape. Neighbouring channels of a head mix.

    Example:
        >>> TokenChannelPool(heads=2)(torch.zeros(1, 1, 8, 3, 4)).shape
        torch.Size([1, 1, 8, 3, 4])

    Source: github.com/BICLab/Spike-Driven-Transformer, module/ms_conv.py (``dvs_mode``).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pool = _dilation()

    def forward(self, x: Tensor) -> Tensor:
        # Tokens before channels: which of several equal spikes gets the gradient depends on it.
        tokens = torch.unflatten(x.flatten(3), 2, (self.heads, -1)).transpose(3, 4)
        pooled = self.pool(tokens).transpose(3, 4).flatten(2, 3)
        return torch.unflatten(pooled, -1, x.shape[-2:])


class SpikeDrivenAttention(nn.Module):
    """Self-attention of masks and sums: a gate per channel, ``lif(sum over tokens of k * v) * q``.

    ``[T, B, C, H, W]`` to the same shape, the membrane shortcut included. Heads play no part,
    unless ``pooled`` (event data) mixes neighbouring channels of a head.

    Args:
        dim: channels of the stream.
        heads: number of attention heads.
        threshold: of the gate's neuron.
        pooled: max-pooling of k and v in space, of k * v and the output by token and channel.
        spike: makes the neurons.

    Example:
        >>> SpikeDrivenAttention(8, heads=2)(torch.zeros(2, 1, 8, 3, 4)).shape
        torch.Size([2, 1, 8, 3, 4])

    Source: Yao et al., "Spike-driven Transformer" (arXiv 2307.01694), spike-driven self-attention;
    github.com/BICLab/Spike-Driven-Transformer, module/ms_conv.py.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        threshold: float = 0.5,
        pooled: bool = False,
        spike: Spike = lif,
    ) -> None:
        super().__init__()
        self.lif = spike()
        self.q = ConvBN(dim, dim)
        self.q_lif = spike()
        self.k = ConvBN(dim, dim)
        self.k_lif = spike()
        self.v = ConvBN(dim, dim)
        self.v_lif = spike()
        self.space = _dilation() if pooled else nn.Identity()
        self.mix = TokenChannelPool(heads) if pooled else nn.Identity()
        self.gate_lif = spike(threshold)
        self.proj = ConvBN(dim, dim, bias=True)
        talking = nn.Parameter(torch.empty(heads, heads, 1).uniform_(-1, 1) / heads**0.5)
        self.unused = nn.ParameterDict({"talking_heads": talking, **unread(spike, "attn_lif")})

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif(x)
        q = self.q_lif(self.q(spikes))
        k = self.space(self.k_lif(self.k(spikes)))
        v = self.space(self.v_lif(self.v(spikes)))
        gate = self.gate_lif(self.mix(k * v).sum((-2, -1), keepdim=True))
        branch: Tensor = self.proj(self.mix(q * gate))
        return x + branch


class ResidualMLP(nn.Module):
    """Two channel layers behind neurons, with the membrane shortcut.

    ``[T, B, C, H, W]`` to the same shape. A hidden layer as wide as the stream has a shortcut of
    its own, and the second one starts behind it.

    Example:
        >>> ResidualMLP(4, 16)(torch.zeros(1, 1, 4, 3, 3)).shape
        torch.Size([1, 1, 4, 3, 3])

    Source: Yao et al., "Spike-driven Transformer" (arXiv 2307.01694), MLP;
    github.com/BICLab/Spike-Driven-Transformer, module/ms_conv.py.
    """

    def __init__(self, dim: int, hidden: int, *, spike: Spike = lif) -> None:
        super().__init__()
        self.inner_shortcut = hidden == dim
        self.lif1 = spike()
        self.fc1 = ConvBN(dim, hidden, bias=True)
        self.lif2 = spike()
        self.fc2 = ConvBN(hidden, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.fc1(self.lif1(x))
        if self.inner_shortcut:
            hidden = hidden + x
        branch: Tensor = self.fc2(self.lif2(hidden))
        return branch + (hidden if self.inner_shortcut else x)

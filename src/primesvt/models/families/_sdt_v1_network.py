"""Spike-driven Transformer: config and build."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN, MaxPool
from primesvt.models.config import ModelConfig, check_choice, check_positive, check_tau
from primesvt.models.heads import SpikingHead
from primesvt.models.neurons import Spike, lif, plif
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "PatchSplitting",
    "ResidualMLP",
    "SDTv1Config",
    "SpikeDrivenAttention",
    "TokenChannelPool",
    "build",
    "oddities",
    "unread",
]


def unread(spike: Spike, name: str) -> dict[str, nn.Parameter]:
    """The parameters of a neuron that official files contain and that no forward uses.

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


_SPIKES: dict[str, Spike] = {"lif": lif, "plif": plif}


@dataclass(frozen=True, kw_only=True)
class SDTv1Config(ModelConfig):
    """Sizes of a Spike-driven Transformer; the defaults are those of the official 8-512.

    ``depth`` blocks work on a stream of ``embed_dim`` channels. ``pooling_stat`` has one flag per
    convolution of the patch splitting: ``"1"`` halves the image there. ``dvs_mode`` adds
    max-pooling inside the attention, ``spike_mode="plif"`` neurons with a learned leak. ``tau`` is
    the membrane time constant, where training starts for ``"plif"``. No attention scale exists.

    Example:
        >>> SDTv1Config(embed_dim=64, num_heads=4).stem_widths
        (8, 16, 32, 64)

    Source: Yao et al., "Spike-driven Transformer" (arXiv 2307.01694); official sizes.
    """

    family: ClassVar[str] = "sdt_v1"

    embed_dim: int = 512
    depth: int = 8
    num_heads: int = 8
    mlp_ratio: float = 4
    pooling_stat: str = "1111"
    spike_mode: str = "lif"
    dvs_mode: bool = False
    attn_threshold: float = 0.5
    tau: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_heads", "depth")
        check_positive(self, "embed_dim", minimum=8)
        check_choice("spike_mode", self.spike_mode, tuple(_SPIKES))
        check_choice("dvs_mode", self.dvs_mode, (False, True))
        check_tau(self.tau)
        flags = self.pooling_stat
        if not isinstance(flags, str) or len(flags) != 4 or not set(flags) <= {"0", "1"}:
            raise ValueError(
                f"pooling_stat is {flags!r}, but needs four flags 0 or 1, one per convolution of"
                ' the patch splitting, such as "0011"'
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim is {self.embed_dim}, which {self.num_heads} heads do not divide;"
                " change num_heads or the width"
            )
        if not self.mlp_ratio * self.embed_dim >= 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio!r}, but must leave a channel")

    @property
    def stem_widths(self) -> tuple[int, int, int, int]:
        """Channels behind the four convolutions of the patch splitting."""
        return self.embed_dim // 8, self.embed_dim // 4, self.embed_dim // 2, self.embed_dim

    @property
    def hidden(self) -> int:
        """Channels between the two layers of an MLP."""
        return round(self.embed_dim * self.mlp_ratio)


def build(config: SDTv1Config) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SDTv1Config(embed_dim=16, num_heads=4, depth=2))
        >>> [name for name, _ in model.blocks.named_children()]
        ['stem', 'block0', 'block1']
    """
    spike = partial(_SPIKES[config.spike_mode], tau=config.tau)
    head = SpikingHead(config.embed_dim, config.num_classes, spike=spike)
    return SpikingViT(config, _blocks(config, spike), head)


def _blocks(config: SDTv1Config, spike: Spike) -> Iterator[tuple[str, nn.Module]]:
    widths = (config.in_channels, *config.stem_widths)
    pools = tuple(flag == "1" for flag in config.pooling_stat)
    yield "stem", PatchSplitting(widths, pools=pools, spike=spike)
    for index in range(config.depth):
        attention = SpikeDrivenAttention(
            config.embed_dim,
            heads=config.num_heads,
            threshold=config.attn_threshold,
            pooled=config.dvs_mode,
            spike=spike,
        )
        mlp = ResidualMLP(config.embed_dim, config.hidden, spike=spike)
        yield f"block{index}", nn.Sequential(OrderedDict(attn=attention, mlp=mlp))


def oddities(config: SDTv1Config) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this config reproduces.

    Example:
        >>> len(oddities(SDTv1Config())), len(oddities(SDTv1Config(dvs_mode=True, mlp_ratio=1)))
        (1, 3)
    """
    found = ["talking_heads.weight of every attention is stored, but no forward reads it"]
    if config.dvs_mode:
        found.append(
            "dvs_mode max-pools the attention over tokens and neighbouring channels of a head, so"
            " its q, k, v and projection widths cannot be pruned; dvs_mode=False leaves it out"
        )
    if config.hidden == config.embed_dim:
        found.append(
            "an MLP as wide as the stream (mlp_ratio=1) has a second shortcut inside, so its hidden"
            " channels belong to the stream"
        )
    return tuple(found)

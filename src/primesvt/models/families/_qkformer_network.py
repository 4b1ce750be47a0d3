"""QKFormer: config and build."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import ConvBN, MaxPool, SpikeMLP, TransformerBlock
from primesvt.models.config import ModelConfig, check_choice, check_positive, check_tau
from primesvt.models.heads import Head
from primesvt.models.neurons import AcrossImages, Spike, lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "STEMS",
    "ConvSpike",
    "PatchEmbed",
    "QKFormerConfig",
    "Stem",
    "TokenQKAttention",
    "build",
]


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


@dataclass(frozen=True, kw_only=True)
class Stem:
    """A patch embedding: 3x3 convolutions, and the 1x1 shortcut around the last of them.

    ``divisors``: the stage's width over that of each convolution; ``pools``: which ones pool;
    ``fork``: after how many the shortcut begins; ``stride``: of the shortcut.
    """

    divisors: tuple[int, ...]
    pools: tuple[bool, ...]
    fork: int
    stride: int


# Per layout of the official code: the first patch embedding, and those of the later stages.
STEMS = {
    "imagenet": (
        Stem(divisors=(2, 1, 1), pools=(True, True, False), fork=1, stride=2),
        Stem(divisors=(1, 1), pools=(True, False), fork=0, stride=2),
    ),
    "cifar": (
        Stem(divisors=(2, 1), pools=(False, False), fork=1, stride=1),
        Stem(divisors=(1, 1), pools=(False, True), fork=0, stride=2),
    ),
    "dvs": (
        Stem(divisors=(8, 4, 2, 1), pools=(False, True, True, True), fork=2, stride=4),
        Stem(divisors=(1, 1), pools=(False, True), fork=0, stride=2),
    ),
}


@dataclass(frozen=True, kw_only=True)
class QKFormerConfig(ModelConfig):
    """Sizes of a QKFormer; the defaults are those of the official 10-768.

    ``embed_dims`` and ``depths`` (blocks) have one entry per stage: Q-K token attention in all
    stages but the last, spiking self-attention there. ``layout`` is the data the official class is
    for, which decides the patch embeddings; ``mlp_ratio`` may have one entry per stage.
    ``proj_neuron`` is the neuron behind the self-attention: ``"mixed"`` runs over time steps and
    images, as the official code does and its weights need; ``"per_image"`` over time alone.

    Example:
        >>> QKFormerConfig(embed_dims=(16, 32, 64), num_heads=2).hidden(0)
        64

    Source: Zhou et al., "QKFormer" (arXiv 2403.16552); official sizes.
    """

    family: ClassVar[str] = "qkformer"

    layout: str = "imagenet"
    embed_dims: tuple[int, ...] = (192, 384, 768)
    depths: tuple[int, ...] = (1, 2, 7)
    num_heads: int = 12
    mlp_ratio: float | tuple[float, ...] = 4
    attn_scale: float = 0.125
    attn_threshold: float = 0.5
    proj_neuron: str = "mixed"
    tau: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("layout", self.layout, tuple(STEMS))
        check_choice("proj_neuron", self.proj_neuron, ("mixed", "per_image"))
        check_positive(self, "embed_dims", "num_heads")
        check_positive(self, "depths", minimum=0)
        check_tau(self.tau)
        for name in ("embed_dims", "depths"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but needs one entry a stage")
        if not self.embed_dims or len(self.embed_dims) != len(self.depths):
            raise ValueError(
                f"embed_dims {self.embed_dims} and depths {self.depths} need one entry per stage"
            )
        least = STEMS[self.layout][0].divisors[0]
        if self.embed_dims[0] < least:
            raise ValueError(
                f"embed_dims[0] is {self.embed_dims[0]}, but the first convolution has one"
                f" {least}th of it: give {least} or more"
            )
        for width, depth in zip(self.embed_dims, self.depths, strict=True):
            if depth and width % self.num_heads:
                raise ValueError(
                    f"embed_dims {self.embed_dims} have a stage of {width} channels, which"
                    f" {self.num_heads} heads do not divide; change num_heads or the width"
                )
        if isinstance(self.mlp_ratio, tuple) and len(self.mlp_ratio) != len(self.depths):
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}, but needs one number, or one per stage"
                f" ({len(self.depths)})"
            )
        for stage, width in enumerate(self.embed_dims):
            if not self.hidden(stage) >= 1:
                raise ValueError(
                    f"mlp_ratio is {self.mlp_ratio!r}, but must leave a channel of {width}"
                )

    def hidden(self, stage: int) -> int:
        """Hidden width of the MLPs of a stage, counted from zero.

        Example:
            >>> QKFormerConfig().hidden(0)
            768
        """
        ratio = self.mlp_ratio[stage] if isinstance(self.mlp_ratio, tuple) else self.mlp_ratio
        return round(self.embed_dims[stage] * ratio)

    @property
    def batch_mixing(self) -> str:
        """The neuron behind the self-attention may carry over from image to image."""
        return 'proj_neuron="mixed"' if self.proj_neuron == "mixed" and self.depths[-1] else ""


def build(config: QKFormerConfig) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(QKFormerConfig(embed_dims=(8, 16, 32), num_heads=2, depths=(1, 1, 1)))
        >>> [name for name, _ in model.blocks.named_children()]
        ['stem1', 'block1_0', 'stem2', 'block2_0', 'stem3', 'block3_0']
    """
    head = Head(config.embed_dims[-1], config.num_classes)
    return SpikingViT(config, _blocks(config), head)


def _blocks(config: QKFormerConfig) -> Iterator[tuple[str, nn.Module]]:
    spike = partial(lif, tau=config.tau)
    first, later = STEMS[config.layout]
    widths = (config.in_channels, *config.embed_dims)
    for stage, (inputs, width) in enumerate(pairwise(widths)):
        yield f"stem{stage + 1}", _stem(inputs, width, first if stage == 0 else later, spike)
        for index in range(config.depths[stage]):
            mlp = SpikeMLP(width, config.hidden(stage), spike=spike)
            attention = _attention(config, stage, spike)
            yield f"block{stage + 1}_{index}", TransformerBlock(attention, mlp)


def _stem(inputs: int, width: int, stem: Stem, spike: Spike) -> PatchEmbed:
    widths = (inputs, *(width // divisor for divisor in stem.divisors))
    layers = [
        ConvSpike(before, after, 3, pool=pool, spike=spike)
        for (before, after), pool in zip(pairwise(widths), stem.pools, strict=True)
    ]
    shortcut = ConvSpike(widths[stem.fork], width, 1, stride=stem.stride, spike=spike)
    return PatchEmbed(layers[: stem.fork], layers[stem.fork :], shortcut)


def _attention(config: QKFormerConfig, stage: int, spike: Spike) -> nn.Module:
    width, heads, threshold = config.embed_dims[stage], config.num_heads, config.attn_threshold
    if stage < len(config.depths) - 1:
        return TokenQKAttention(width, heads=heads, threshold=threshold, spike=spike)
    mixed = config.proj_neuron == "mixed"
    return SpikingSelfAttention(
        width,
        heads=heads,
        scale=config.attn_scale,
        threshold=threshold,
        projection=partial(ConvBN, dims=1),
        out_projection=partial(ConvBN, bias=True, dims=1),
        spike=spike,
        out_spike=partial(AcrossImages, spike) if mixed else spike,
    )

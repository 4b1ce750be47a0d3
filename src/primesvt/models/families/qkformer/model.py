"""QKFormer: config and build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

from torch import nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import ConvBN, SpikeMLP, TransformerBlock
from primesvt.models.config import ModelConfig, check_choice, check_positive, check_tau
from primesvt.models.families.qkformer.blocks import (
    AcrossImages,
    ConvSpike,
    PatchEmbed,
    TokenQKAttention,
)
from primesvt.models.heads import Head
from primesvt.models.neurons import Spike, lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["STEMS", "QKFormerConfig", "Stem", "build"]


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
        self._check_widths()

    def _check_widths(self) -> None:
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

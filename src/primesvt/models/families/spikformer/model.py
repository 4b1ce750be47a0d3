"""Spikformer: config, and how its blocks are put together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import ConvBN, MaxPool, SpikeMLP, TransformerBlock
from primesvt.models.config import check_choice, check_positive
from primesvt.models.families._isotropic import IsotropicConfig
from primesvt.models.families.spikformer.blocks import LinearBN, PositionEmbedding
from primesvt.models.heads import Head
from primesvt.models.neurons import lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SpikformerConfig", "build"]


@dataclass(frozen=True, kw_only=True)
class SpikformerConfig(IsotropicConfig):
    """Sizes of a Spikformer; the defaults are those of the official ImageNet model 8-512.

    ``layout`` is the official class whose weights fit: ``"imagenet"``, ``"cifar"`` (all layers of
    the blocks are linear ones) or ``"dvs"`` (Conv1d MLP; carries a position embedding of
    ``pos_tokens`` tokens and a norm that are never used). ``pooling_stat`` has one flag per
    convolution of the stem, ``"1"`` where pooling follows. ``attn_scale`` is fixed and does not
    follow the widths: 0.125, and 0.25 in the official event-camera class.

    Example:
        >>> SpikformerConfig(embed_dim=36, num_heads=4, layout="cifar").stem_widths
        (4, 9, 18, 36)

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425); official sizes.
    """

    family: ClassVar[str] = "spikformer"

    layout: str = "imagenet"
    attn_scale: float = 0.125
    pos_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("layout", self.layout, ("imagenet", "cifar", "dvs"))
        check_positive(self, "pos_tokens")
        if not isinstance(self.attn_scale, int | float) or not self.attn_scale > 0:
            raise ValueError(
                f"attn_scale is {self.attn_scale!r}, but must be above 0, such as 0.125"
            )

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Channels after each of the four convolutions of the stem."""
        dim = self.embed_dim
        return dim // 8, dim // 4, dim // 2, dim


def build(config: SpikformerConfig) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SpikformerConfig(embed_dim=16, depth=2, num_heads=4))
        >>> [name for name, _ in model.blocks.named_children()]
        ['stem', 'block0', 'block1']
    """
    head = Head(config.embed_dim, config.num_classes)
    if config.layout == "dvs":
        head.unused = nn.ModuleDict({"norm": nn.LayerNorm(config.embed_dim)})
        tokens = torch.zeros(1, config.pos_tokens, config.embed_dim)
        head.unused.register_parameter("pos_embed", nn.Parameter(tokens))
    return SpikingViT(config, _blocks(config), head)


def _blocks(config: SpikformerConfig) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", _stem(config)
    for index in range(config.depth):
        yield f"block{index}", _block(config)


def _stem(config: SpikformerConfig) -> nn.Module:
    """Spiking patch splitting: convolution, neuron and pooling four times, then the position."""
    spike = partial(lif, tau=config.tau)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    widths = (config.in_channels, *config.stem_widths)
    for stage, pooled in enumerate(config.pooling_stat):
        layers[f"conv{stage}"] = ConvBN(widths[stage], widths[stage + 1], 3)
        layers[f"lif{stage}"] = spike()
        if pooled == "1":
            layers[f"pool{stage}"] = MaxPool()
    layers["rpe"] = PositionEmbedding(config.embed_dim, spike=spike)
    return nn.Sequential(layers)


def _block(config: SpikformerConfig) -> nn.Module:
    """Spiking self-attention and MLP on a stream of summed spikes."""
    spike, dim = partial(lif, tau=config.tau), config.embed_dim
    qkv, proj, channel = _layers(config.layout)
    attention = SpikingSelfAttention(
        dim,
        heads=config.num_heads,
        scale=config.attn_scale,
        projection=qkv,
        out_projection=proj,
        spike=spike,
        out_spike=spike,
    )
    mlp = SpikeMLP(dim, config.hidden, spike=spike, projection=channel)
    block = TransformerBlock(attention, mlp)
    block.unused = nn.ModuleDict({"norm1": nn.LayerNorm(dim), "norm2": nn.LayerNorm(dim)})
    return block


Layer = Callable[[int, int], nn.Module]


def _layers(layout: str) -> tuple[Layer, Layer, Layer]:
    """What makes q, k and v, the projection behind the attention, and the MLP's layers."""
    if layout == "cifar":
        return LinearBN, LinearBN, LinearBN
    tokens = partial(ConvBN, dims=1)
    channel = partial(ConvBN, bias=True, dims=2 if layout == "imagenet" else 1)
    return tokens, partial(tokens, bias=True), channel

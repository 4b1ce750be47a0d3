"""Spikingformer: config, and how its blocks are put together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBN, MaxPool, TransformerBlock
from primesvt.models.config import check_choice
from primesvt.models.families._isotropic import IsotropicConfig
from primesvt.models.heads import Head
from primesvt.models.neurons import lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SpikingformerConfig", "build"]


@dataclass(frozen=True, kw_only=True)
class SpikingformerConfig(IsotropicConfig):
    """Sizes of a Spikingformer; the defaults are those of the official ImageNet model 8-512.

    ``layout`` says how official weights spell the stem: ``"imagenet"`` (the event-camera classes
    too) or ``"cifar"``. ``pooling_stat`` has one flag per convolution of the stem after the first,
    ``"1"`` where pooling precedes it. ``attn_scale`` is fixed and does not follow the widths.
    ``tau`` is 2, and 1.5 in the official event-camera classes.

    Example:
        >>> SpikingformerConfig(embed_dim=36, num_heads=4).stem_widths
        (4, 9, 18, 36, 36)

    Source: Zhou et al., "Spikingformer" (arXiv 2304.11954); official sizes.
    """

    family: ClassVar[str] = "spikingformer"

    layout: str = "imagenet"
    attn_scale: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("layout", self.layout, ("imagenet", "cifar"))
        if not isinstance(self.attn_scale, int | float) or not self.attn_scale > 0:
            raise ValueError(
                f"attn_scale is {self.attn_scale!r}, but must be above 0, such as 0.125"
            )

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Channels after each of the five convolutions of the stem."""
        dim = self.embed_dim
        return dim // 8, dim // 4, dim // 2, dim, dim


def build(config: SpikingformerConfig) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SpikingformerConfig(embed_dim=16, depth=2, num_heads=4))
        >>> [name for name, _ in model.blocks.named_children()]
        ['stem', 'block0', 'block1']
    """
    return SpikingViT(config, _blocks(config), Head(config.embed_dim, config.num_classes))


def _blocks(config: SpikingformerConfig) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", _stem(config)
    for index in range(config.depth):
        yield f"block{index}", _block(config)


def _stem(config: SpikingformerConfig) -> nn.Module:
    """Spiking tokenizer: a convolution, then neuron, pooling and convolution four times."""
    widths = config.stem_widths
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv0"] = ConvBN(config.in_channels, widths[0], 3)
    for stage, pooled in enumerate(config.pooling_stat, start=1):
        layers[f"lif{stage}"] = lif(tau=config.tau)
        if pooled == "1":
            layers[f"pool{stage}"] = MaxPool()
        layers[f"conv{stage}"] = ConvBN(widths[stage - 1], widths[stage], 3)
    return nn.Sequential(layers)


def _block(config: SpikingformerConfig) -> nn.Module:
    """Spiking self-attention and MLP, each in front of a membrane shortcut."""
    spike, dim = partial(lif, tau=config.tau), config.embed_dim
    attention = SpikingSelfAttention(
        dim,
        heads=config.num_heads,
        scale=config.attn_scale,
        projection=partial(ConvBN, dims=1),
        out_projection=partial(ConvBN, dims=1, bias=True),
        spike=spike,
    )
    mlp = MLP(dim, config.hidden, spike=spike, dims=2)
    block = TransformerBlock(attention, mlp)
    block.unused = nn.ModuleDict({"norm1": nn.LayerNorm(dim), "norm2": nn.LayerNorm(dim)})
    return block

"""Spike-driven Transformer V3, base sizes (E-SpikeFormer): config and model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBN
from primesvt.models.families._staged import StagedConfig, stages
from primesvt.models.families.sdt_v3.blocks import EfficientBlock, SepConv, SepConvBlock
from primesvt.models.families.sdt_v3.ratio import scaled
from primesvt.models.heads import SpikingHead
from primesvt.models.neurons import integer
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SDTv3Config", "build"]


@dataclass(frozen=True, kw_only=True)
class SDTv3Config(StagedConfig):
    """Sizes of an SDT-V3 of the base kind; the defaults are those of its largest.

    ``sep_ratio`` gives the hidden width of separable convolutions. The factor of the attention is
    ``2 / sqrt(width of a head)`` of these sizes, whatever the widths become. Neurons round exact
    halves to the even neighbour.

    Example:
        >>> SDTv3Config(embed_dims=(8, 16, 32, 48), num_heads=2).depths
        (6, 2)

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061);
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    family: ClassVar[str] = "sdt_v3"

    sep_ratio: float = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ratios("sep_ratio")


def build(config: SDTv3Config) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SDTv3Config(embed_dims=(8, 8, 16, 16), num_heads=4, depths=(1, 1)))
        >>> model.blocks.block3_0.attn.scale
        1.0
    """
    spike = partial(integer, levels=config.spike_levels)
    head = SpikingHead(config.embed_dims[-1], config.num_classes, spike=partial(spike, norm=1))
    return SpikingViT(config, stages(config, spike, partial(_block, config)), head)


def _block(config: SDTv3Config, stage: int, width: int) -> nn.Module:
    spike = partial(integer, levels=config.spike_levels)
    sep_hidden = scaled(width, config.sep_ratio)
    if stage < 3:
        hidden = scaled(width, config.conv_ratio)
        return SepConvBlock(width, hidden, sep_hidden=sep_hidden, spike=spike)
    attention = SpikingSelfAttention(
        width,
        heads=config.num_heads,
        scale=2 * (width // config.num_heads) ** -0.5,
        threshold=1.0,
        projection=ConvBN,
        spike=spike,
        v_dim=scaled(width, config.v_ratio),
    )
    return EfficientBlock(
        sep=SepConv(width, sep_hidden, 3, spike=spike),
        attn=attention,
        mlp=MLP(width, scaled(width, config.mlp_ratio), spike=spike),
    )

"""Spike-driven Transformer V3, large sizes: config and model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP
from primesvt.models.families._staged import StagedConfig, stages
from primesvt.models.families.sdt_v3.blocks import ConvBlock
from primesvt.models.families.sdt_v3.ratio import scaled
from primesvt.models.families.sdt_v3_large.blocks import (
    NormedRepConv,
    RepConv,
    ScaledBlock,
    SplitHead,
)
from primesvt.models.neurons import Spike, integer
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SDTv3LargeConfig", "build"]


@dataclass(frozen=True, kw_only=True)
class SDTv3LargeConfig(StagedConfig):
    """Sizes of an SDT-V3 of the large kind; the defaults are those of the larger one.

    ``inner_ratio`` gives the hidden width of the layers that make q, k and v and follow the
    attention, ``rep_ratio`` that of the branch which the official ``choice="base"`` has in front
    of the attention (``None``: no such branch). Where the norm in that branch has another length,
    ``rep_norm_ratio``, no forward can run it: its tensors are kept unused. ``drop_path`` is the
    rate of stochastic depth in the last block; it rises evenly from zero in the first. Neurons
    round exact halves up.

    Example:
        >>> SDTv3LargeConfig(embed_dims=(8, 16, 32), depths=(2,), num_heads=4).attn_scale
        0.125

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061);
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    family: ClassVar[str] = "sdt_v3_large"
    transformer_stages: ClassVar[int] = 1

    embed_dims: tuple[int, ...] = (196, 384, 768)
    v_ratio: float = 1
    depths: tuple[int, ...] = (12,)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    inner_ratio: float = 1.5
    rep_ratio: float | None = None
    rep_norm_ratio: float | None = None
    distillation: bool = False
    attn_scale: float = 0.125
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ratios("inner_ratio")
        self.check_ratios(*(n for n in ("rep_ratio", "rep_norm_ratio") if getattr(self, n)))
        if self.rep_norm_ratio is not None and self.rep_ratio is None:
            raise ValueError(
                f"rep_norm_ratio is {self.rep_norm_ratio!r} without a branch that has this norm;"
                " give rep_ratio too, or leave both at None"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path!r}, but a rate is in [0, 1)")

    @property
    def rep_runs(self) -> bool:
        """Whether the branch in front of the attention exists and can be computed."""
        return self.rep_ratio is not None and self.rep_norm_ratio in (None, self.rep_ratio)


def build(config: SDTv3LargeConfig) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SDTv3LargeConfig(embed_dims=(8, 8, 16), num_heads=4, depths=(1,)))
        >>> [name for name, _ in model.blocks.named_children()][-2:]
        ['down3', 'block3_0']
    """
    spike = partial(integer, levels=config.spike_levels, rounding="up")
    head = SplitHead(
        config.embed_dims[-1],
        config.num_classes,
        distillation=config.distillation,
        spike=partial(spike, norm=1),
    )
    rates = iter(torch.linspace(0, config.drop_path, config.depths[0], device="cpu").tolist())

    def block(stage: int, width: int) -> nn.Module:
        if stage < 3:
            return ConvBlock(width, scaled(width, config.conv_ratio), spike=spike, bias=True)
        return _transformer_block(config, width, spike, next(rates))

    return SpikingViT(config, stages(config, spike, block), head)


def _transformer_block(
    config: SDTv3LargeConfig, width: int, spike: Spike, drop_path: float
) -> nn.Module:
    def projection(inputs: int, outputs: int) -> nn.Module:
        return NormedRepConv(inputs, outputs, hidden=scaled(inputs, config.inner_ratio))

    attention = SpikingSelfAttention(
        width,
        heads=config.num_heads,
        scale=config.attn_scale,
        threshold=1.0,
        projection=projection,
        spike=spike,
        v_dim=scaled(width, config.v_ratio),
    )
    return ScaledBlock(
        width,
        attention,
        MLP(width, scaled(width, config.mlp_ratio), spike=spike),
        spike=spike,
        drop_path=drop_path,
        rep=_rep(config, width) if config.rep_runs else None,
        unused=None if config.rep_runs else _rep(config, width),
    )


def _rep(config: SDTv3LargeConfig, width: int) -> RepConv | None:
    if config.rep_ratio is None:
        return None
    rep = RepConv(width, width, hidden=scaled(width, config.rep_ratio))
    if config.rep_norm_ratio is not None:
        rep.inner.bn = nn.BatchNorm1d(scaled(width, config.rep_norm_ratio))
    return rep

"""Spike-driven Transformer V2 (Meta-SpikeFormer): config and blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase
from typing import ClassVar

from torch import nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBlock, Downsample, TransformerBlock
from primesvt.models.config import ModelConfig, check_positive, check_tau
from primesvt.models.heads import SpikingHead
from primesvt.models.neurons import lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SDTv2Config", "build", "stage_names"]


@dataclass(frozen=True, kw_only=True)
class SDTv2Config(ModelConfig):
    """Sizes of a Meta-SpikeFormer; the defaults are those of the official code.

    ``embed_dims`` are the widths after the second to the fifth downsampling (the first has half
    of ``embed_dims[0]``), ``strides`` belong to the five downsamplings, ``conv_depths`` to the
    widths ``embed_dims[0] / 2``, ``embed_dims[0]`` and ``embed_dims[1]``, ``depths`` to the two
    transformer stages. ``attn_scale`` is fixed and does not follow the widths.

    Example:
        >>> SDTv2Config(embed_dims=(8, 16, 32, 48), num_heads=4).depths
        (6, 2)

    Source: Yao et al., "Spike-driven Transformer V2" (arXiv 2404.03663); official sizes.
    """

    family: ClassVar[str] = "sdt_v2"

    embed_dims: tuple[int, ...] = (128, 256, 512, 640)
    num_heads: int = 8
    mlp_ratio: float = 4
    conv_ratio: float = 4
    sep_ratio: float = 2
    conv_depths: tuple[int, ...] = (1, 1, 2)
    depths: tuple[int, ...] = (6, 2)
    stem_kernel: int = 7
    strides: tuple[int, ...] = (2, 2, 2, 2, 1)
    distillation: bool = False
    attn_scale: float = 0.125
    attn_threshold: float = 0.5
    tau: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, length in (("embed_dims", 4), ("conv_depths", 3), ("depths", 2), ("strides", 5)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != length:
                raise ValueError(f"{name} is {value!r}, but needs {length} integers")
        check_positive(self, "embed_dims", "num_heads", "stem_kernel", "strides")
        check_positive(self, "conv_depths", "depths", minimum=0)
        check_tau(self.tau)
        self._check_widths()

    def _check_widths(self) -> None:
        if self.embed_dims[0] % 2:
            raise ValueError(
                f"embed_dims[0] is {self.embed_dims[0]}, but must be even: the first stage has half"
            )
        for width in self.embed_dims[2:]:
            if width % self.num_heads:
                raise ValueError(
                    f"embed_dims {self.embed_dims} have {width} channels in a transformer stage,"
                    f" which {self.num_heads} heads do not divide; change num_heads or the width"
                )
        for name in ("mlp_ratio", "conv_ratio", "sep_ratio"):
            if not getattr(self, name) * self.embed_dims[0] >= 2:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must leave a channel")
        if max(self.conv_depths) > len(ascii_lowercase):
            raise ValueError(f"conv_depths is {self.conv_depths}, but 26 blocks are the most")


def build(config: SDTv2Config) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SDTv2Config(embed_dims=(8, 8, 16, 16), num_heads=4, depths=(1, 1)))
        >>> [name for name, _ in model.blocks.named_children()][:4]
        ['down1a', 'conv1a', 'down1b', 'conv1b']
    """
    head = SpikingHead(
        config.embed_dims[-1],
        config.num_classes,
        distillation=config.distillation,
        spike=partial(lif, tau=config.tau),
    )
    return SpikingViT(config, _blocks(config), head)


def _blocks(config: SDTv2Config) -> Iterator[tuple[str, nn.Module]]:
    e0, e1, e2, e3 = config.embed_dims
    widths = (config.in_channels, e0 // 2, e0, e1, e2, e3)
    for stage, name in enumerate(("down1a", "down1b", "down2", "down3", "down4")):
        first = stage == 0
        yield (
            name,
            Downsample(
                widths[stage],
                widths[stage + 1],
                config.stem_kernel if first else 3,
                stride=config.strides[stage],
                spiking=not first,
                spike=partial(lif, tau=config.tau),
            ),
        )
        for block in stage_names(config)[stage]:
            yield block, _block(config, stage, widths[stage + 1])


def _block(config: SDTv2Config, stage: int, width: int) -> nn.Module:
    spike = partial(lif, tau=config.tau)
    if stage < 3:
        return ConvBlock(
            width,
            sep_hidden=round(width * config.sep_ratio),
            hidden=round(width * config.conv_ratio),
            spike=spike,
        )
    attention = SpikingSelfAttention(
        width,
        heads=config.num_heads,
        scale=config.attn_scale,
        threshold=config.attn_threshold,
        spike=spike,
    )
    mlp = MLP(width, round(width * config.mlp_ratio), spike=spike)
    return TransformerBlock(attention, mlp)


def stage_names(config: SDTv2Config) -> tuple[dict[str, str], ...]:
    """Per stage: our name of each block, and the official one."""
    first, second, third = config.conv_depths
    return (
        {f"conv1a{f'_{i}' if i else ''}": f"ConvBlock1_1.{i}" for i in range(first)},
        {f"conv1b{f'_{i}' if i else ''}": f"ConvBlock1_2.{i}" for i in range(second)},
        {f"conv2{ascii_lowercase[i]}": f"ConvBlock2_{i + 1}.0" for i in range(third)},
        *(
            {f"block{stage}_{i}": f"block{stage}.{i}" for i in range(depth)}
            for stage, depth in zip((3, 4), config.depths, strict=True)
        ),
    )

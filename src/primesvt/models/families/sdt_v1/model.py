"""Spike-driven Transformer: config and build."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from primesvt.models.config import ModelConfig, check_choice, check_positive, check_tau
from primesvt.models.families.sdt_v1.blocks import (
    PatchSplitting,
    ResidualMLP,
    SpikeDrivenAttention,
)
from primesvt.models.heads import SpikingHead
from primesvt.models.neurons import Spike, lif, plif
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SDTv1Config", "build", "oddities"]

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
    """What the official code does that one would not expect, for a config.

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

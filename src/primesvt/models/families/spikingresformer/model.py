"""SpikingResformer: config and model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from primesvt.models.config import ModelConfig, check_choice, check_positive, check_tau
from primesvt.models.families.spikingresformer.attention import DualSpikeAttention
from primesvt.models.families.spikingresformer.blocks import (
    Downsampling,
    GroupWiseFFN,
    MeanHead,
    Stem,
)
from primesvt.models.neurons import Spike, lif, plif
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["Layers", "SpikingResformer", "SpikingResformerConfig", "build", "pairs"]

Layers = tuple[tuple[str, ...], ...]
_LAYERS = ("DSSA", "GWFFN")


@dataclass(frozen=True, kw_only=True)
class SpikingResformerConfig(ModelConfig):
    """Sizes of a SpikingResformer; the defaults are those of the official small model.

    Every stage has a width (``embed_dims``), a head count, a patch size and a list of ``layers``,
    each ``"DSSA"`` (attention) or ``"GWFFN"`` (feed-forward network). The attention scale counts
    the patches of an image of ``img_size`` (one number, or height and width), whatever is shown
    later; ``None`` takes the first input's size and keeps it. ``layout`` chooses the stem: 7x7 with
    stride and pooling for ``"imagenet"``, plain 3x3 for ``"cifar"``, which event cameras use too.

    Example:
        >>> SpikingResformerConfig(img_size=288).layers[1]
        ('DSSA', 'GWFFN', 'DSSA', 'GWFFN')

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302); official sizes.
    """

    family: ClassVar[str] = "spikingresformer"

    layers: Layers = (_LAYERS, 2 * _LAYERS, 3 * _LAYERS)
    embed_dims: tuple[int, ...] = (64, 256, 512)
    num_heads: tuple[int, ...] = (1, 4, 8)
    patch_sizes: tuple[int, ...] = (4, 2, 1)
    mlp_ratio: float = 4
    group_size: int = 64
    img_size: int | tuple[int, int] | None = 224
    layout: str = "imagenet"
    spike_mode: str = "lif"
    tau: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", tuple(tuple(stage) for stage in self.layers))
        for name in ("embed_dims", "num_heads", "patch_sizes"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != len(self.layers) or not value:
                raise ValueError(f"{name} is {value!r}, but needs {len(self.layers)} integers")
        check_positive(self, "embed_dims", "num_heads", "patch_sizes", "group_size")
        check_choice("layout", self.layout, ("imagenet", "cifar"))
        check_choice("spike_mode", self.spike_mode, ("lif", "plif"))
        check_tau(self.tau)
        for layer in (layer for stage in self.layers for layer in stage):
            check_choice("layers", layer, _LAYERS)
        self._check_widths()
        if self.img_size is not None:
            self._check_image()

    def _check_widths(self) -> None:
        for width, heads in zip(self.embed_dims, self.num_heads, strict=True):
            if width % heads:
                raise ValueError(
                    f"embed_dims {self.embed_dims} have {width} channels in a stage of {heads}"
                    " heads; change num_heads or the width to a multiple"
                )
            if (hidden := round(width * self.mlp_ratio)) < 1 or hidden % self.groups(width):
                raise ValueError(
                    f"mlp_ratio {self.mlp_ratio} makes {hidden} hidden channels of {width}, and"
                    f" group_size {self.group_size} makes {self.groups(width)} groups of them;"
                    " change one of them so that they divide"
                )

    def _check_image(self) -> None:
        check_positive(self, "img_size")
        if isinstance(self.img_size, tuple) and len(self.img_size) != 2:
            raise ValueError(f"img_size is {self.img_size}, but needs one or two integers")
        for (height, width), patch in zip(self.grids(), self.patch_sizes, strict=True):
            if min(height, width) < patch:
                raise ValueError(
                    f"img_size {self.img_size} leaves {height}x{width} pixels to a stage with"
                    f" patches of {patch}; use larger images or smaller patch_sizes"
                )

    def groups(self, width: int) -> int:
        """How many groups the convolution inside a feed-forward network has.

        Example:
            >>> SpikingResformerConfig().groups(256)
            16
        """
        return max(1, round(width * self.mlp_ratio) // self.group_size)

    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width that the stages see, for images of ``img_size``.

        Example:
            >>> SpikingResformerConfig(img_size=(224, 96)).grids()
            ((56, 24), (28, 12), (14, 6))
        """
        size = self.img_size if self.img_size is not None else 0
        height, width = size if isinstance(size, tuple) else (size, size)
        shrink = 4 if self.layout == "imagenet" else 1
        return tuple(
            (height // shrink // 2**stage, width // shrink // 2**stage)
            for stage in range(len(self.layers))
        )


class SpikingResformer(SpikingViT):
    """A ``SpikingViT`` that knows the image size its attention scales are made for.

    Example:
        >>> import torch
        >>> model = build(SpikingResformerConfig(img_size=None, num_classes=10))
        >>> _ = model(torch.zeros(1, 3, 32, 64))
        >>> model.config.img_size
        (32, 64)
    """

    config: SpikingResformerConfig

    def set_img_size(self, img_size: int | tuple[int, int]) -> None:
        """Fix the image size, or height and width, that the attention scales count patches of.

        Raises ``ValueError`` for a size that leaves a stage less than one patch.

        Example:
            >>> model = build(SpikingResformerConfig())
            >>> model.set_img_size(288)
            >>> model.blocks.block1_0.attn.tokens
            324
        """
        self.config = replace(self.config, img_size=img_size)
        stages = list(zip(self.config.grids(), self.config.patch_sizes, strict=True))
        for name, block in self.blocks.named_children():
            attention = getattr(block, "attn", None)
            if isinstance(attention, DualSpikeAttention):
                (height, width), patch = stages[int(name.removeprefix("block").split("_")[0]) - 1]
                attention.tokens = (height // patch) * (width // patch)

    def enter(self, x: Tensor) -> Tensor:
        """Images or frames with time in front; the first ones fix the image size, if none did."""
        frames = super().enter(x)
        if self.config.img_size is None:
            height, width = x.shape[-2:]
            self.set_img_size(height if height == width else (height, width))
        return frames


def build(config: SpikingResformerConfig) -> SpikingResformer:
    """Build the model of a config, with fresh weights.

    Example:
        >>> [name for name, _ in build(SpikingResformerConfig()).blocks.named_children()][:4]
        ['stem', 'block1_0', 'down2', 'block2_0']
    """
    head = MeanHead(config.embed_dims[-1], config.num_classes)
    model = SpikingResformer(config, _blocks(config), head)
    if config.img_size is not None:
        model.set_img_size(config.img_size)
    return model


def _blocks(config: SpikingResformerConfig) -> Iterator[tuple[str, nn.Module]]:
    spike = partial(plif if config.spike_mode == "plif" else lif, tau=config.tau, gradient="atan")
    widths = config.embed_dims
    yield "stem", Stem(config.in_channels, widths[0], pool=config.layout == "imagenet")
    for stage, names in enumerate(pairs(config.layers)):
        if stage:
            yield f"down{stage + 1}", Downsampling(widths[stage - 1], widths[stage], spike=spike)
        for index, parts in enumerate(names):
            made = OrderedDict((part, _part(config, stage, part, spike)) for part in parts)
            yield f"block{stage + 1}_{index}", nn.Sequential(made)


def _part(config: SpikingResformerConfig, stage: int, part: str, spike: Spike) -> nn.Module:
    width = config.embed_dims[stage]
    if part == "attn":
        heads, patch = config.num_heads[stage], config.patch_sizes[stage]
        return DualSpikeAttention(width, heads=heads, patch=patch, spike=spike)
    hidden = round(width * config.mlp_ratio)
    return GroupWiseFFN(width, hidden, groups=config.groups(width), spike=spike)


def pairs(layers: Layers) -> list[list[list[str]]]:
    """Per stage the blocks, each an attention and the feed-forward network behind it, or one alone.

    Example:
        >>> pairs((("DSSA", "GWFFN", "GWFFN"), ("GWFFN",)))
        [[['attn', 'mlp'], ['mlp']], [['mlp']]]
    """
    stages: list[list[list[str]]] = []
    for stage in layers:
        blocks: list[list[str]] = []
        for layer in stage:
            if layer == "DSSA":
                blocks.append(["attn"])
            elif blocks and blocks[-1] == ["attn"]:
                blocks[-1].append("mlp")
            else:
                blocks.append(["mlp"])
        stages.append(blocks)
    return stages

"""SpikingResformer: config and model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN
from primesvt.models.config import ModelConfig, check_choice, check_positive, check_tau
from primesvt.models.fast_paths import HalvingMaxPool
from primesvt.models.neurons import Spike, lif, plif
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "Downsampling",
    "DualSpikeAttention",
    "GroupWiseFFN",
    "Layers",
    "MeanHead",
    "SpikingResformer",
    "SpikingResformerConfig",
    "Stem",
    "build",
    "pairs",
]


_MOMENTUM = 0.999


class DualSpikeAttention(nn.Module):
    """Dual spike self-attention with its shortcut: spikes meet a transform of spikes, twice.

    ``[T, B, C, H, W]`` to the same shape. One convolution over patches makes two halves per head;
    the first meets the input spikes (``y1^T s``, an attention map of patches by pixels), the second
    meets the spikes of that map. Each product is divided by the root of its length times the
    firing rate of its spikes: a running mean per head, measured in training and kept in buffers
    ``[1, 1, heads, 1, 1]``, which the first training batch fills. Where a rate is zero (a model
    that was never trained, a head that never fired) the division has no meaning: the official code
    gets NaN, which no threshold lets pass; here the product is zero, which passes none either.

    Args:
        dim: channels of the stream.
        heads: number of attention heads.
        patch: size and stride of the convolution over patches.
        spike: makes the neurons.

    Attributes:
        tokens: number of patches that the second scale uses, of the image size that the model is
            made for; ``None`` until the model knows it.

    Example:
        >>> from primesvt.models import lif
        >>> attention = DualSpikeAttention(8, heads=2, patch=2, spike=lif)
        >>> attention.tokens = 4
        >>> attention(torch.zeros(3, 1, 8, 4, 4)).shape
        torch.Size([3, 1, 8, 4, 4])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), DSSA;
    github.com/xyshi2000/SpikingResformer, models/spikingresformer.py.
    """

    firing_rate_x: Tensor
    firing_rate_attn: Tensor

    def __init__(self, dim: int, *, heads: int, patch: int, spike: Spike) -> None:
        super().__init__()
        self.heads = heads
        self.patch = patch
        self.width = dim // heads
        self.tokens: int | None = None
        self.lif = spike()
        self.w = ConvBN(dim, 2 * dim, patch, stride=patch, padding=0)
        self.attn_lif = spike()
        self.out_lif = spike()
        self.proj = ConvBN(dim, dim)
        self.register_buffer("firing_rate_x", torch.zeros(1, 1, heads, 1, 1))
        self.register_buffer("firing_rate_attn", torch.zeros(1, 1, heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is None:
            raise ValueError("the image size is not known yet: call model.set_img_size((H, W))")
        image = self.lif(x)
        spikes = self._split(image)
        mixed = self._split(self.w(image))
        channels = spikes.shape[3]  # pruned or not, the first half is as wide as its partner
        y1, y2 = mixed.split([channels, mixed.shape[3] - channels], dim=3)
        self._measure(self.firing_rate_x, spikes)
        scores = y1.transpose(-2, -1) @ spikes * _scale(self.firing_rate_x, self.width)
        attention = self.attn_lif(scores)
        self._measure(self.firing_rate_attn, attention)
        out = y2 @ attention * _scale(self.firing_rate_attn, self.tokens)
        merged = torch.unflatten(out.flatten(2, 3), -1, x.shape[-2:])
        branch: Tensor = self.proj(self.out_lif(merged))
        return x + branch

    def _split(self, x: Tensor) -> Tensor:
        """``[T, B, C, H, W]`` to ``[T, B, heads, C / heads, tokens]``."""
        return torch.unflatten(x.flatten(-2), 2, (self.heads, -1))

    def _measure(self, rate: Tensor, spikes: Tensor) -> None:
        if not self.training:
            return
        with torch.no_grad():
            now = spikes.mean((0, 1, 3, 4), keepdim=True).to(rate.dtype)
            rate.copy_(torch.where((rate == 0).all(), now, rate.lerp(now, 1 - _MOMENTUM)))


def _scale(rate: Tensor, length: int) -> Tensor:
    return torch.where(rate > 0, (rate * length).rsqrt(), torch.zeros_like(rate))


class Stem(ConvBN):
    """First convolution; ``pool`` makes it a strided 7x7 one with max pooling, else it is 3x3.

    Example:
        >>> Stem(3, 8, pool=True)(torch.zeros(2, 1, 3, 16, 16)).shape
        torch.Size([2, 1, 8, 4, 4])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), prologue.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool) -> None:
        super().__init__(inputs, outputs, 7 if pool else 3, stride=2 if pool else 1)
        self.pool = HalvingMaxPool() if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        image = super().forward(x)
        return torch.unflatten(self.pool(image.flatten(0, 1)), 0, x.shape[:2])


class Downsampling(ConvBN):
    """Neuron, then a 3x3 convolution of stride 2 and batch normalisation.

    Example:
        >>> from primesvt.models import lif
        >>> Downsampling(4, 8, spike=lif)(torch.zeros(2, 1, 4, 6, 6)).shape
        torch.Size([2, 1, 8, 3, 3])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), downsampling layer.
    """

    def __init__(self, inputs: int, outputs: int, *, spike: Spike) -> None:
        super().__init__(inputs, outputs, 3, stride=2)
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.lif(x))


class GroupWiseFFN(nn.Module):
    """Feed-forward network with a 3x3 convolution in groups inside; both have shortcuts.

    ``[T, B, C, H, W]`` to the same shape; every layer spikes its input.

    Example:
        >>> from primesvt.models import lif
        >>> GroupWiseFFN(4, 16, groups=2, spike=lif)(torch.zeros(2, 1, 4, 6, 6)).shape
        torch.Size([2, 1, 4, 6, 6])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), group-wise spiking feed-forward
    network; github.com/xyshi2000/SpikingResformer, models/spikingresformer.py.
    """

    def __init__(self, dim: int, hidden: int, *, groups: int, spike: Spike) -> None:
        super().__init__()
        self.lif1 = spike()
        self.fc1 = ConvBN(dim, hidden)
        self.lif2 = spike()
        self.conv = ConvBN(hidden, hidden, 3, groups=groups)
        self.lif3 = spike()
        self.fc2 = ConvBN(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.fc1(self.lif1(x))
        wide = wide + self.conv(self.lif2(wide))
        branch: Tensor = self.fc2(self.lif3(wide))
        return x + branch


class MeanHead(nn.Module):
    """Classifier without bias on the spatial mean: ``[T, B, C, H, W]`` to ``[T, B, classes]``.

    Example:
        >>> MeanHead(8, 10)(torch.zeros(2, 1, 8, 3, 3)).shape
        torch.Size([2, 1, 10])
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(dim, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x.flatten(0, 1)).flatten(1)
        logits: Tensor = self.fc(torch.unflatten(pooled, 0, x.shape[:2]))
        return logits


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
        if self.img_size is not None:
            self._check_image()

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

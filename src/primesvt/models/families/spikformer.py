"""Spikformer (arXiv 2209.15425): the ImageNet, CIFAR and event-camera classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import ConvBN, MaxPool, SpikeMLP, TransformerBlock
from primesvt.models.config import check_choice, check_positive
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._isotropic import (
    DIGITS_SIZES,
    IsotropicConfig,
    check_attn_scale,
    cifar_sizes,
    equal_blocks,
)
from primesvt.models.families._names import NUMBERED_STEM, QKV_PROJ, count, layers, under
from primesvt.models.families.family import Family
from primesvt.models.heads import Head
from primesvt.models.neurons import Spike, lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "FAMILY",
    "LinearBN",
    "PositionEmbedding",
    "SpikformerConfig",
    "build",
    "entries",
    "infer",
    "oddities",
    "official_names",
]


class PositionEmbedding(ConvBN):
    """Position embedding by convolution: its spikes are added to those of the patches.

    ``[T, B, C, H, W]`` to the same shape.

    Example:
        >>> PositionEmbedding(4)(torch.zeros(2, 1, 4, 5, 3)).shape
        torch.Size([2, 1, 4, 5, 3])

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425), relative position embedding; official
    code, imagenet/model.py.
    """

    def __init__(self, dim: int, *, spike: Spike = lif) -> None:
        super().__init__(dim, dim, 3)
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        position: Tensor = self.lif(super().forward(x))
        return x + position


class LinearBN(nn.Module):
    """Linear layer on every token of an image, and batch normalisation over all of them.

    ``[T, B, C, H, W]`` to ``[T, B, C', H, W]``: a 1x1 convolution whose weight has two axes.

    Example:
        >>> LinearBN(3, 8)(torch.zeros(2, 1, 3, 4, 5)).shape
        torch.Size([2, 1, 8, 4, 5])

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425); official code, cifar10/model.py.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1).flatten(2).transpose(1, 2)
        normed: Tensor = self.bn(self.linear(tokens).transpose(1, 2))
        return torch.unflatten(torch.unflatten(normed, -1, x.shape[-2:]), 0, x.shape[:2])


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
        check_attn_scale(self.attn_scale)

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
    return SpikingViT(config, equal_blocks(config, _stem, _block), head)


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
    """The layers of q, k and v, of the projection behind the attention, and of the MLP."""
    if layout == "cifar":
        return LinearBN, LinearBN, LinearBN
    tokens = partial(ConvBN, dims=1)
    channel = partial(ConvBN, bias=True, dims=2 if layout == "imagenet" else 1)
    return tokens, partial(tokens, bias=True), channel


_BLOCK = {
    "": "",
    "attn": "attn",
    **{f"attn.{part}_lif": f"attn.{part}_lif" for part in (*QKV_PROJ, "attn")},
    "mlp": "mlp",
    "mlp.lif1": "mlp.fc1_lif",
    "mlp.lif2": "mlp.fc2_lif",
    "unused.norm1": "norm1",
    "unused.norm2": "norm2",
}
_HEAD = {"head.fc": "head", "head.unused.norm": "norm", "head.unused.pos_embed": "pos_embed"}


def official_names(config: SpikformerConfig) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> names = official_names(SpikformerConfig(layout="cifar"))
        >>> names["blocks.block3.attn.q.linear"], names["blocks.stem.conv1.conv"]
        ('block.3.attn.q_linear', 'patch_embed.proj_conv1')

    Source: github.com/ZK-Zhou/spikformer, model.py of imagenet, cifar10 and cifar10dvs.
    """
    names = _HEAD | under("blocks.stem", "patch_embed", {**NUMBERED_STEM, "rpe.lif": "rpe_lif"})
    parts = (_weights(config.layout), "bn")
    inside = {
        **_BLOCK,
        **layers("attn", "attn", QKV_PROJ, parts),
        **layers("mlp", "mlp", ("fc1", "fc2"), parts),
    }
    for block in range(config.depth):
        names |= under(f"blocks.block{block}", f"block.{block}", inside)
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the keys and shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'patch_embed.rpe_conv.weight'
    """
    # SDT v1 has the keys of the stem too, but no LayerNorms; a stage may be spelled otherwise.
    for required in ("patch_embed.rpe_conv", "patch_embed.proj_conv3", "block.0.norm1"):
        state[f"{required}.weight"]
    layout = _layout(state)
    hidden, width = state[f"block.0.mlp.fc1_{_weights(layout)}.weight"].shape[:2]
    found: dict[str, Any] = {
        "layout": layout,
        "in_channels": state["patch_embed.proj_conv.weight"].shape[1],
        "embed_dim": width,
        "depth": count(state, "block.{}."),
        "mlp_ratio": hidden / width,
        "num_classes": state["head.weight"].shape[0],
    }
    if layout == "dvs":
        found["pos_tokens"] = state["pos_embed"].shape[1]
    return found


def oddities(config: SpikformerConfig) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this config reproduces.

    Example:
        >>> oddities(SpikformerConfig())
        ('norm1 and norm2 of every block are in the file, but no forward uses them',)
    """
    if config.layout != "dvs":
        return ("norm1 and norm2 of every block are in the file, but no forward uses them",)
    return (
        "norm1 and norm2 of every block, norm and pos_embed are in the file, but no forward uses"
        " them",
        f"the attention is scaled by {config.attn_scale:g} (attn_scale): the official event-camera"
        " class has 0.25, the others 0.125",
        "the official event-camera class needs 128x128 frames; here any size works",
    )


def _weights(layout: str) -> str:
    return "linear" if layout == "cifar" else "conv"


def _layout(state: Mapping[str, Tensor]) -> str:
    if "block.0.attn.q_linear.weight" in state:
        return "cifar"
    return "dvs" if state["block.0.mlp.fc1_conv.weight"].ndim == 3 else "imagenet"


_SECONDARY = "secondary: tables of later papers"
_BOTH = "README of Spikingformer; secondary: tables of later papers"
# The official code fixes the head count for 8-512 only; the other sizes assume the same.
_IMAGENET = (
    (8, 512, 73.38, _BOTH),
    (8, 384, 70.24, _BOTH),
    (6, 512, 72.46, _SECONDARY),
    (10, 512, 73.68, _SECONDARY),
    (8, 768, 74.81, _BOTH),
)
# Official are 12 heads for 4-384; the others assume 32 channels per head as well.
_CIFAR = ((4, 384, 12), (4, 256, 8), (2, 384, 12))


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'spikformer_8_512'
    """
    for depth, width, top1, source in _IMAGENET:
        yield ModelEntry(
            name=f"spikformer_{depth}_{width}",
            config=SpikformerConfig(embed_dim=width, depth=depth),
            data=IMAGENET,
            published=Published(top1=top1, time_steps=4, source=source),
        )
    for classes in (10, 100):
        for depth, width, heads in _CIFAR:
            yield ModelEntry(
                name=f"spikformer_cifar{classes}_{depth}_{width}",
                config=SpikformerConfig(**cifar_sizes(classes, depth, width, heads)),
                data=CIFAR,
            )
    yield ModelEntry(
        name="spikformer_cifar10dvs",
        config=SpikformerConfig(
            layout="dvs",
            in_channels=2,
            num_classes=10,
            time_steps=16,
            embed_dim=256,
            depth=2,
            num_heads=16,
            attn_scale=0.25,
        ),
        data=events(2, 128),
    )
    small = SpikformerConfig(**cifar_sizes(10, 2, 96, 4))
    yield ModelEntry(name="spikformer_small", config=small, data=CIFAR)
    digits = SpikformerConfig(**DIGITS_SIZES)
    yield ModelEntry(name="spikformer_digits", config=digits, data=DIGITS)


FAMILY = Family(
    title="Spikformer",
    config=SpikformerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

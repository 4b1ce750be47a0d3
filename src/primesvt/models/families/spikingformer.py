"""Spikingformer (arXiv 2304.11954): the ImageNet, CIFAR and event-camera classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBN, MaxPool, TransformerBlock
from primesvt.models.config import check_choice
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._isotropic import (
    DIGITS_SIZES,
    IsotropicConfig,
    check_attn_scale,
    cifar_sizes,
    equal_blocks,
)
from primesvt.models.families._names import QKV_PROJ, count, layers, under
from primesvt.models.families.family import Family
from primesvt.models.heads import Head
from primesvt.models.neurons import lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "FAMILY",
    "SpikingformerConfig",
    "build",
    "entries",
    "infer",
    "modernise",
    "oddities",
    "official_names",
]


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
        check_attn_scale(self.attn_scale)

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
    head = Head(config.embed_dim, config.num_classes)
    return SpikingViT(config, equal_blocks(config, _stem, _block), head)


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


_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.lif": "attn.proj_lif",
    **{f"attn.{part}_lif": f"attn.{part}_lif" for part in ("q", "k", "v", "attn")},
    **layers("attn", "attn", QKV_PROJ),
    "mlp": "mlp",
    "mlp.lif1": "mlp.mlp1_lif",
    "mlp.fc1.conv": "mlp.mlp1_conv",
    "mlp.fc1.bn": "mlp.mlp1_bn",
    "mlp.lif2": "mlp.mlp2_lif",
    "mlp.fc2.conv": "mlp.mlp2_conv",
    "mlp.fc2.bn": "mlp.mlp2_bn",
    "unused.norm1": "norm1",
    "unused.norm2": "norm2",
}
_STAGES = {
    "imagenet": ("proj", "proj1", "proj2", "proj3", "proj4"),
    "cifar": ("block0", "block1", "block2", "block3", "block4"),
}
_OLD_STEM = "patch_embed.rpe_"
_OLD = (
    f"{_OLD_STEM}conv.weight",
    f"{_OLD_STEM}bn.weight",
    "block.0.mlp.fc1_conv.weight",
    "block.0.mlp.fc1_bn.weight",
    "block.0.mlp.fc2_conv.weight",
    "block.0.mlp.fc2_bn.weight",
)


def official_names(config: SpikingformerConfig) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> names = official_names(SpikingformerConfig())
        >>> names["blocks.block3.mlp.fc1.conv"], names["blocks.stem.conv1.conv"]
        ('block.3.mlp.mlp1_conv', 'patch_embed.proj1_conv')

    Source: github.com/zhouchenlin2096/Spikingformer, model.py of imagenet, cifar10, cifar100,
    cifar10-dvs and dvs128-gesture.
    """
    names = {"blocks.stem": "patch_embed", "head.fc": "head"}
    for stage, official in enumerate(_STAGES[config.layout]):
        for ours, part in (("conv{}.conv", "conv"), ("conv{}.bn", "bn"), ("lif{}", "lif")):
            names[f"blocks.stem.{ours.format(stage)}"] = f"patch_embed.{official}_{part}"
    for block in range(config.depth):
        names |= under(f"blocks.block{block}", f"block.{block}", _BLOCK)
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the keys and shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'patch_embed.proj4_conv.weight'
    """
    layout = "cifar" if "patch_embed.block0_conv.weight" in state else "imagenet"
    first, *_, last = _STAGES[layout]
    for required in (f"patch_embed.{last}_conv", "block.0.norm1"):
        state[f"{required}.weight"]
    hidden, width = state["block.0.mlp.mlp1_conv.weight"].shape[:2]
    return {
        "layout": layout,
        "in_channels": state[f"patch_embed.{first}_conv.weight"].shape[1],
        "embed_dim": width,
        "depth": count(state, "block.{}."),
        "mlp_ratio": hidden / width,
        "num_classes": state["head.weight"].shape[0],
    }


def modernise(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename tensors of older official code to the names of the present one.

    These are the last convolution of the stem and the MLPs.

    The authors' log of 8-512 shows ``rpe_conv`` and ``fc1_conv``; that spelling is known from the
    log only, no file was seen. Nothing changes unless all its keys are there. A file whose whole
    stem is spelled as in Spikformer cannot be told from one, and stays as it is.

    Example:
        >>> modernise({"block.0.mlp.fc1_conv.weight": 1})
        {'block.0.mlp.fc1_conv.weight': 1}
    """
    for *_, fourth, last in _STAGES.values():
        if all(key in state for key in (f"patch_embed.{fourth}_conv.weight", *_OLD)):
            return {_present(key, last): tensor for key, tensor in state.items()}
    return state


def _present(key: str, last: str) -> str:
    if key.startswith(_OLD_STEM):
        return f"patch_embed.{last}_{key.removeprefix(_OLD_STEM)}"
    return key.replace(".mlp.fc", ".mlp.mlp")


def oddities(config: SpikingformerConfig) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this config reproduces.

    Example:
        >>> oddities(SpikingformerConfig())
        ('norm1 and norm2 of every block are in the file, but no forward uses them',)
    """
    found = ["norm1 and norm2 of every block are in the file, but no forward uses them"]
    if config.tau != 2:
        found += [
            f"all neurons have the time constant {config.tau:g} (tau): the official event-camera"
            " classes have 1.5, the others 2, and no shape tells",
            "the official event-camera classes need 128x128 frames; here any size works",
        ]
    if config.embed_dim == 768:
        found.append(
            f"there are {config.num_heads} heads (num_heads): the official configuration has 8 for"
            " 768 channels, the authors' energy script assumes 12"
        )
    return tuple(found)


_IMAGENET = ((512, 74.79), (384, 72.45), (768, 75.85))
# Official configs: 12 heads for 4-384 on CIFAR-10 and 8 on CIFAR-100; the other sizes go with them.
_CIFAR = (
    (10, 4, 384, 12),
    (10, 4, 256, 8),
    (10, 2, 384, 12),
    (100, 4, 384, 8),
    (100, 4, 256, 8),
    (100, 2, 384, 8),
)
_EVENTS = (("cifar10dvs", 10), ("gesture", 11))


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'spikingformer_8_512'
    """
    for width, top1 in _IMAGENET:
        yield ModelEntry(
            name=f"spikingformer_8_{width}",
            config=SpikingformerConfig(embed_dim=width),
            data=IMAGENET,
            published=Published(top1=top1, time_steps=4, source="authors' README"),
        )
    for classes, depth, width, heads in _CIFAR:
        yield ModelEntry(
            name=f"spikingformer_cifar{classes}_{depth}_{width}",
            config=SpikingformerConfig(**cifar_sizes(classes, depth, width, heads)),
            data=CIFAR,
        )
    for dataset, classes in _EVENTS:
        yield ModelEntry(
            name=f"spikingformer_{dataset}",
            config=SpikingformerConfig(
                in_channels=2,
                num_classes=classes,
                time_steps=16,
                embed_dim=256,
                depth=2,
                num_heads=16,
                tau=1.5,
            ),
            data=events(2, 128),
        )
    small = SpikingformerConfig(**cifar_sizes(10, 2, 96, 4))
    yield ModelEntry(name="spikingformer_small", config=small, data=CIFAR)
    digits = SpikingformerConfig(**DIGITS_SIZES)
    yield ModelEntry(name="spikingformer_digits", config=digits, data=DIGITS)


FAMILY = Family(
    title="Spikingformer",
    config=SpikingformerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    modernise=modernise,
    oddities=oddities,
)

"""Spike-driven Transformer V2, Meta-SpikeFormer (arXiv 2404.03663)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from primesvt.data.config import CIFAR, DIGITS, IMAGENET
from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBlock, TransformerBlock
from primesvt.models.config import ModelConfig, check_positive, check_tau
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._names import count, transformer_block, under
from primesvt.models.families._staged import check_depths, stage_names, stages
from primesvt.models.families.family import Family
from primesvt.models.heads import SpikingHead
from primesvt.models.neurons import lif
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "FAMILY",
    "SDTv2Config",
    "build",
    "entries",
    "infer",
    "oddities",
    "official_names",
]


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
        for ratio in ("mlp_ratio", "conv_ratio", "sep_ratio"):
            if not getattr(self, ratio) * self.embed_dims[0] >= 2:
                raise ValueError(f"{ratio} is {getattr(self, ratio)!r}, but must leave a channel")
        check_depths(self.conv_depths)


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
    blocks = stages(config, partial(lif, tau=config.tau), partial(_block, config))
    return SpikingViT(config, blocks, head)


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


_DOWN = {"": "", "lif": "encode_lif", "conv": "encode_conv", "bn": "encode_bn"}
_CONV_BLOCK = {
    "": "",
    "sep": "Conv",
    "sep.lif1": "Conv.lif1",
    "sep.pw1.conv": "Conv.pwconv1",
    "sep.pw1.bn": "Conv.bn1",
    "sep.lif2": "Conv.lif2",
    "sep.dw": "Conv.dwconv",
    "sep.pw2.conv": "Conv.pwconv2",
    "sep.pw2.bn": "Conv.bn2",
    "lif1": "lif1",
    "conv1.conv": "conv1",
    "conv1.bn": "bn1",
    "lif2": "lif2",
    "conv2.conv": "conv2",
    "conv2.bn": "bn2",
}
_REP_CONV = {
    "": "",
    "inner": "0.body.0",
    "pad": "0.body.1",
    "pad.bn": "0.body.1.bn",
    "depthwise": "0.body.2.0",
    "outer": "0.body.2.1",
    "outer_bn": "0.body.2.2",
    "bn": "1",
}
_TRANSFORMER_BLOCK = transformer_block("lif")


def official_names(config: SDTv2Config) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> official_names(SDTv2Config())["blocks.block3_0.attn.q.inner"]
        'block3.0.attn.q_conv.0.body.0'

    Source: github.com/BICLab/Spike-Driven-Transformer-V2, classification/models.py.
    """
    downs = {"1a": "1_1", "1b": "1_2", "2": "2", "3": "3", "4": "4"}
    names = {"head.lif": "lif", "head.fc": "head", "head.fc_kd": "head_kd"}
    for ours, official in downs.items():
        names |= under(f"blocks.down{ours}", f"downsample{official}", _DOWN)
    for stage, blocks in enumerate(stage_names(config)):
        for ours, official in blocks.items():
            inside = _CONV_BLOCK if stage < 3 else _TRANSFORMER_BLOCK
            names |= under(f"blocks.{ours}", official, inside)
            for part in ("q", "k", "v", "proj") if stage >= 3 else ():
                path = f"blocks.{ours}.attn.{part}"
                names |= under(path, f"{official}.attn.{part}_conv", _REP_CONV)
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'downsample1_1.encode_conv.weight'
    """
    stem = state["downsample1_1.encode_conv.weight"].shape
    # SDT-V3 has the same downsamplings; only here are q, k and v made by such a chain.
    _ = state["block4.0.attn.q_conv.0.body.0.weight"]
    widths = [
        state[f"downsample{stage}.encode_conv.weight"].shape[0] for stage in ("1_2", "2", "3", "4")
    ]
    found: dict[str, Any] = {
        "in_channels": stem[1],
        "stem_kernel": stem[-1],
        "embed_dims": tuple(widths),
        "num_classes": state["head.weight"].shape[0],
        "distillation": any(key.startswith("head_kd.") for key in state),
        "conv_depths": (
            count(state, "ConvBlock1_1.{}."),
            count(state, "ConvBlock1_2.{}."),
            count(state, "ConvBlock2_{}.0.", start=1),
        ),
        "depths": (count(state, "block3.{}."), count(state, "block4.{}.")),
    }
    for name, layer in (
        ("mlp_ratio", "mlp.fc1_conv.weight"),
        ("sep_ratio", "Conv.pwconv1.weight"),
        ("conv_ratio", ".0.conv1.weight"),
    ):
        shapes = [tensor.shape for key, tensor in state.items() if key.endswith(layer)]
        if shapes:
            found[name] = shapes[0][0] / shapes[0][1]
    return found


def oddities(config: SDTv2Config) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this config reproduces.

    Example:
        >>> len(oddities(SDTv2Config()))
        2

    Source: github.com/BICLab/Spike-Driven-Transformer-V2, classification/models.py.
    """
    return (
        "the convolutions that make q, k, v and follow the attention are padded with what the batch"
        " norm before them makes of zero, by its running statistics even in training; weights that"
        " were trained so are wrong with zeros",
        f"attention is scaled by {config.attn_scale:g} (attn_scale) at every width",
    )


# The 15M and 124M sizes have no figure in a source that could be checked.
_SIZES: dict[str, tuple[tuple[int, ...], str | None, Published | None, Published | None]] = {
    "15m": ((64, 128, 256, 360), None, None, None),
    "31m": (
        (96, 192, 384, 480),
        "metaspikformer_8_384",
        Published(top1=77.2, time_steps=4, source="secondary: tables of later papers"),
        None,
    ),
    "55m": (
        (128, 256, 512, 640),
        "metaspikformer_8_512",
        Published(top1=79.7, time_steps=4, source="secondary: tables of later papers"),
        Published(top1=80.0, time_steps=4, source="authors' README and abstract"),
    ),
    "124m": ((192, 384, 768, 960), "metaspikformer_8_768", None, None),
}


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'sdt_v2_15m'
    """
    for size, (widths, alias, published, published_kd) in _SIZES.items():
        yield ModelEntry(
            name=f"sdt_v2_{size}",
            config=SDTv2Config(embed_dims=widths),
            data=IMAGENET,
            published=published,
            aliases=(alias,) if alias else (),
        )
        yield ModelEntry(
            name=f"sdt_v2_{size}_kd",
            config=SDTv2Config(embed_dims=widths, distillation=True),
            data=IMAGENET,
            published=published_kd,
        )
    yield from _small()


def _small() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="sdt_v2_small",
        config=SDTv2Config(
            embed_dims=(32, 64, 128, 160),
            num_classes=10,
            conv_depths=(1, 1, 1),
            depths=(2, 1),
            stem_kernel=3,
            strides=(1, 2, 1, 2, 1),
        ),
        data=CIFAR,
    )
    yield ModelEntry(
        name="sdt_v2_digits",
        config=SDTv2Config(
            in_channels=1,
            num_classes=10,
            time_steps=2,
            embed_dims=(16, 16, 32, 40),
            num_heads=4,
            conv_depths=(1, 1, 1),
            depths=(1, 1),
            stem_kernel=3,
            strides=(1, 1, 2, 1, 1),
        ),
        data=DIGITS,
        weights="sdt_v2_digits.safetensors",
    )


FAMILY = Family(
    title="Spike-driven Transformer V2",
    config=SDTv2Config,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

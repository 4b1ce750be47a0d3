"""Spike-driven Transformer V2 (Meta-SpikeFormer): config, blocks, and the official names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, ClassVar

from torch import Tensor, nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBlock, Downsample, TransformerBlock
from primesvt.models.config import ModelConfig, check_positive
from primesvt.models.heads import SpikingHead
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["SDTv2Config", "build", "infer", "official_names"]


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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, length in (("embed_dims", 4), ("conv_depths", 3), ("depths", 2), ("strides", 5)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != length:
                raise ValueError(f"{name} is {value!r}, but needs {length} integers")
        check_positive(self, "embed_dims", "num_heads", "stem_kernel", "strides")
        check_positive(self, "conv_depths", "depths", minimum=0)
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
    head = SpikingHead(config.embed_dims[-1], config.num_classes, distillation=config.distillation)
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
            ),
        )
        for block in _stage_names(config)[stage]:
            yield block, _block(config, stage, widths[stage + 1])


def _block(config: SDTv2Config, stage: int, width: int) -> nn.Module:
    if stage < 3:
        return ConvBlock(
            width,
            sep_hidden=round(width * config.sep_ratio),
            hidden=round(width * config.conv_ratio),
        )
    attention = SpikingSelfAttention(
        width,
        heads=config.num_heads,
        scale=config.attn_scale,
        threshold=config.attn_threshold,
    )
    return TransformerBlock(attention, MLP(width, round(width * config.mlp_ratio)))


def _stage_names(config: SDTv2Config) -> tuple[dict[str, str], ...]:
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
_TRANSFORMER_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.lif": "attn.head_lif",
    "attn.q_lif": "attn.q_lif",
    "attn.k_lif": "attn.k_lif",
    "attn.v_lif": "attn.v_lif",
    "attn.attn_lif": "attn.attn_lif",
    "mlp": "mlp",
    "mlp.lif1": "mlp.fc1_lif",
    "mlp.fc1.conv": "mlp.fc1_conv",
    "mlp.fc1.bn": "mlp.fc1_bn",
    "mlp.lif2": "mlp.fc2_lif",
    "mlp.fc2.conv": "mlp.fc2_conv",
    "mlp.fc2.bn": "mlp.fc2_bn",
}


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
        names |= _under(f"blocks.down{ours}", f"downsample{official}", _DOWN)
    for stage, blocks in enumerate(_stage_names(config)):
        for ours, official in blocks.items():
            inside = _CONV_BLOCK if stage < 3 else _TRANSFORMER_BLOCK
            names |= _under(f"blocks.{ours}", official, inside)
            for part in ("q", "k", "v", "proj") if stage >= 3 else ():
                path = f"blocks.{ours}.attn.{part}"
                names |= _under(path, f"{official}.attn.{part}_conv", _REP_CONV)
    return names


def _under(ours: str, official: str, inside: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{ours}.{a}".removesuffix("."): f"{official}.{b}".removesuffix(".")
        for a, b in inside.items()
    }


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
            _count(state, "ConvBlock1_1.{}."),
            _count(state, "ConvBlock1_2.{}."),
            _count(state, "ConvBlock2_{}.0.", start=1),
        ),
        "depths": (_count(state, "block3.{}."), _count(state, "block4.{}.")),
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


def _count(state: Mapping[str, Tensor], pattern: str, start: int = 0) -> int:
    number = start
    while any(key.startswith(pattern.format(number)) for key in state):
        number += 1
    return number - start

"""Spike-driven Transformer V3, base sizes: E-SpikeFormer (arXiv 2411.16061)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from primesvt.data.config import CIFAR, IMAGENET
from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBN, TransformerBlock
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._names import count, transformer_block, under
from primesvt.models.families._staged import StagedConfig, ratio_of, scaled, stage_names, stages
from primesvt.models.families.family import Family
from primesvt.models.heads import SpikingHead
from primesvt.models.neurons import Spike, integer
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "FAMILY",
    "ConvBlock",
    "EfficientBlock",
    "SDTv3Config",
    "SepConv",
    "SepConvBlock",
    "build",
    "entries",
    "infer",
    "oddities",
    "official_names",
]


class SepConv(nn.Module):
    """Separable convolution with a neuron in front, and a norm behind, each of its three layers.

    Example:
        >>> import torch
        >>> from primesvt.models.neurons import integer
        >>> SepConv(4, 8, 3, spike=integer)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), E-SpikeFormer;
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    def __init__(self, dim: int, hidden: int, kernel: int, *, spike: Spike) -> None:
        super().__init__()
        self.lif1 = spike()
        self.pw1 = ConvBN(dim, hidden)
        self.lif2 = spike()
        self.dw = ConvBN(hidden, hidden, kernel, groups=hidden)
        self.lif3 = spike()
        self.pw2 = ConvBN(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.pw1(self.lif1(x))
        mixed = self.dw(self.lif2(expanded))
        projected: Tensor = self.pw2(self.lif3(mixed))
        return projected


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each behind a neuron, added to the stream.

    Example:
        >>> import torch
        >>> from primesvt.models.neurons import integer
        >>> ConvBlock(4, 16, spike=integer)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), E-SpikeFormer;
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, dim: int, hidden: int, *, spike: Spike, bias: bool = False) -> None:
        super().__init__()
        self.lif1 = spike()
        self.conv1 = ConvBN(dim, hidden, 3, bias=bias)
        self.lif2 = spike()
        self.conv2 = ConvBN(hidden, dim, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv2(self.lif2(self.conv1(self.lif1(x))))
        return x + branch


class SepConvBlock(ConvBlock):
    """A separable 7x7 convolution, then the two 3x3 ones, each branch added to the stream.

    Example:
        >>> import torch
        >>> from primesvt.models.neurons import integer
        >>> SepConvBlock(4, 16, sep_hidden=8, spike=integer)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    def __init__(self, dim: int, hidden: int, *, sep_hidden: int, spike: Spike) -> None:
        super().__init__(dim, hidden, spike=spike)
        self.sep = SepConv(dim, sep_hidden, 7, spike=spike)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.sep(x))


class EfficientBlock(TransformerBlock):
    """A separable 3x3 convolution, attention and an MLP, each added to the stream.

    Example:
        >>> import torch
        >>> EfficientBlock(*(nn.Identity() for _ in range(3)))(torch.ones(1, 1, 1, 1, 1)).item()
        8.0

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), E-SpikeFormer;
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    def __init__(self, sep: nn.Module, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__(attn, mlp)
        self.sep = sep

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.sep(x))


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


_DOWN = {"": "", "lif": "encode_spike", "conv": "encode_conv", "bn": "encode_bn"}
_CONV_BN = {"": "", "conv": "0", "bn": "1"}
_SEP = {"": "", **{f"lif{i}": f"spike{i}" for i in (1, 2, 3)}}
_CONV_BLOCK = {
    "": "",
    "lif1": "spike1",
    "conv1.conv": "conv1",
    "conv1.bn": "bn1",
    "lif2": "spike2",
    "conv2.conv": "conv2",
    "conv2.bn": "bn2",
}
_TRANSFORMER_BLOCK = transformer_block("spike")


def official_names(config: SDTv3Config) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> official_names(SDTv3Config())["blocks.block3_0.attn.q.conv"]
        'block3.0.attn.q_conv.0'

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """
    downs = {"1a": "1_1", "1b": "1_2", "2": "2", "3": "3", "4": "4"}
    names = {"head.lif": "spike", "head.fc": "head"}
    for ours, official in downs.items():
        names |= under(f"blocks.down{ours}", f"downsample{official}", _DOWN)
    for stage, blocks in enumerate(stage_names(config)):
        for ours, official in blocks.items():
            path = f"blocks.{ours}"
            names |= under(path, official, _CONV_BLOCK if stage < 3 else _TRANSFORMER_BLOCK)
            names |= _sep_names(f"{path}.sep", f"{official}.{'Conv' if stage < 3 else 'conv'}")
            for part in ("q", "k", "v", "proj") if stage >= 3 else ():
                names |= under(f"{path}.attn.{part}", f"{official}.attn.{part}_conv", _CONV_BN)
    return names


def _sep_names(ours: str, official: str) -> dict[str, str]:
    names = under(ours, official, _SEP)
    for part, theirs in (("pw1", "pwconv1"), ("dw", "dwconv"), ("pw2", "pwconv2")):
        names |= under(f"{ours}.{part}", f"{official}.{theirs}", _CONV_BN)
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'block3.0.conv.pwconv1.0.weight'

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """
    # Only this family has a separable convolution in its transformer blocks.
    _ = state["block3.0.conv.pwconv1.0.weight"]
    stem = state["downsample1_1.encode_conv.weight"].shape
    ratios = {
        "mlp_ratio": ratio_of(state, "mlp.fc1_conv.weight", usual=4),
        "conv_ratio": ratio_of(state, ".conv1.weight", usual=4),
        "sep_ratio": ratio_of(state, ".pwconv1.0.weight", usual=2),
        "v_ratio": ratio_of(state, "attn.v_conv.0.weight", usual=4),
    }
    return {
        "in_channels": stem[1],
        "stem_kernel": stem[-1],
        "embed_dims": tuple(
            state[f"downsample{stage}.encode_conv.weight"].shape[0]
            for stage in ("1_2", "2", "3", "4")
        ),
        "num_classes": state["head.weight"].shape[0],
        "conv_depths": (
            count(state, "ConvBlock1_1.{}."),
            count(state, "ConvBlock1_2.{}."),
            count(state, "ConvBlock2_{}.0.", start=1),
        ),
        "depths": (count(state, "block3.{}."), count(state, "block4.{}.")),
        **{name: value for name, value in ratios.items() if value is not None},
    }


def oddities(config: SDTv3Config) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this config reproduces.

    Example:
        >>> len(oddities(SDTv3Config()))
        3

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """
    levels = config.spike_levels
    return (
        f"neurons give integer levels 0..{levels} divided by {levels} (spike_levels), and round an"
        " exact half to the even neighbour, while the large models of SDT-V3 round it up",
        f"the last neuron gives undivided levels 0..{levels}",
        "attention is scaled by 2 / sqrt(width of a head), taken from the unpruned width and"
        f" num_heads={config.num_heads}, which shapes do not tell",
    )


# No figure was found for the two smaller sizes.
_SIZES: dict[str, tuple[tuple[int, ...], str, Published | None]] = {
    "19m": (
        (64, 128, 256, 360),
        "efficient_spiking_transformer_l",
        Published(top1=79.8, time_steps=1, source="authors' abstract, four virtual time steps"),
    ),
    "10m": (
        (48, 96, 192, 240),
        "efficient_spiking_transformer_m",
        Published(top1=78.5, time_steps=1, source="authors' abstract, four virtual time steps"),
    ),
    "5m": ((32, 64, 128, 192), "efficient_spiking_transformer_s", None),
    "3m": ((24, 48, 96, 128), "efficient_spiking_transformer_t", None),
}


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and a small one of our own.

    Example:
        >>> next(entries()).name
        'sdt_v3_19m'

    Source: official sizes; figures as in the abstract of arXiv 2411.16061.
    """
    for size, (widths, alias, published) in _SIZES.items():
        yield ModelEntry(
            name=f"sdt_v3_{size}",
            config=SDTv3Config(embed_dims=widths),
            data=IMAGENET,
            published=published,
            aliases=(alias,),
        )
    yield ModelEntry(
        name="sdt_v3_small",
        config=SDTv3Config(
            embed_dims=(16, 32, 64, 96),
            num_classes=10,
            conv_depths=(1, 1, 1),
            depths=(2, 1),
            stem_kernel=3,
            strides=(1, 2, 1, 2, 1),
        ),
        data=CIFAR,
    )


FAMILY = Family(
    title="Spike-driven Transformer V3",
    config=SDTv3Config,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

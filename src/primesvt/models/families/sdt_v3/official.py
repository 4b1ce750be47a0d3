"""SDT-V3 base: official names, and what an official state dict gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primesvt.models.families._names import count, under
from primesvt.models.families._staged import stage_names
from primesvt.models.families.sdt_v3.model import SDTv3Config
from primesvt.models.families.sdt_v3.ratio import ratio_of

__all__ = ["infer", "oddities", "official_names"]

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
_TRANSFORMER_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.lif": "attn.head_spike",
    "attn.q_lif": "attn.q_spike",
    "attn.k_lif": "attn.k_spike",
    "attn.v_lif": "attn.v_spike",
    "attn.attn_lif": "attn.attn_spike",
    "mlp": "mlp",
    "mlp.lif1": "mlp.fc1_spike",
    "mlp.fc1.conv": "mlp.fc1_conv",
    "mlp.fc1.bn": "mlp.fc1_bn",
    "mlp.lif2": "mlp.fc2_spike",
    "mlp.fc2.conv": "mlp.fc2_conv",
    "mlp.fc2.bn": "mlp.fc2_bn",
}


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
    """What the official code does that one would not expect, one sentence each.

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

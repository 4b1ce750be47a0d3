"""Spike-driven Transformer V2: official names, and what an official state dict gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primesvt.models.families._names import count, under
from primesvt.models.families.sdt_v2.model import SDTv2Config, stage_names

__all__ = ["infer", "oddities", "official_names"]

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
    """What the official code does that one would not expect, one sentence each.

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

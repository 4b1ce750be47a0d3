"""Spike-driven Transformer: official names, and what an official state dict gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primesvt.models.families._names import count, under
from primesvt.models.families.sdt_v1.model import SDTv1Config

__all__ = ["infer", "official_names"]

_STEM = {
    "": "",
    "lif0": "proj_lif",
    "conv0.conv": "proj_conv",
    "conv0.bn": "proj_bn",
    **{f"lif{i}": f"proj_lif{i}" for i in (1, 2, 3)},
    **{f"conv{i}.conv": f"proj_conv{i}" for i in (1, 2, 3)},
    **{f"conv{i}.bn": f"proj_bn{i}" for i in (1, 2, 3)},
    "rpe.conv": "rpe_conv",
    "rpe.bn": "rpe_bn",
    "unused.rpe_lif": "rpe_lif.w",
}
_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.lif": "attn.shortcut_lif",
    **{f"attn.{part}_lif": f"attn.{part}_lif" for part in ("q", "k", "v")},
    **{f"attn.{part}.conv": f"attn.{part}_conv" for part in ("q", "k", "v", "proj")},
    **{f"attn.{part}.bn": f"attn.{part}_bn" for part in ("q", "k", "v", "proj")},
    "attn.gate_lif": "attn.talking_heads_lif",
    "attn.unused.talking_heads": "attn.talking_heads.weight",
    "attn.unused.attn_lif": "attn.attn_lif.w",
    "mlp": "mlp",
    **{f"mlp.lif{i}": f"mlp.fc{i}_lif" for i in (1, 2)},
    **{f"mlp.fc{i}.conv": f"mlp.fc{i}_conv" for i in (1, 2)},
    **{f"mlp.fc{i}.bn": f"mlp.fc{i}_bn" for i in (1, 2)},
}


def official_names(config: SDTv1Config) -> dict[str, str]:
    """Map our names to those of the official code, for every layer and most containers.

    Example:
        >>> official_names(SDTv1Config())["blocks.block0.attn.gate_lif"]
        'block.0.attn.talking_heads_lif'

    Source: github.com/BICLab/Spike-Driven-Transformer, model/spikeformer.py.
    """
    names = {"head.lif": "head_lif", "head.fc": "head"}
    names |= under("blocks.stem", "patch_embed", _STEM)
    for index in range(config.depth):
        names |= under(f"blocks.block{index}", f"block.{index}", _BLOCK)
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the keys and shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'patch_embed.proj_conv.weight'
    """
    first = state["patch_embed.proj_conv.weight"].shape
    hidden, width = state["block.0.mlp.fc1_conv.weight"].shape[:2]
    return {
        "in_channels": first[1],
        "embed_dim": state["patch_embed.rpe_conv.weight"].shape[0],
        "depth": count(state, "block.{}."),
        "num_heads": state["block.0.attn.talking_heads.weight"].shape[0],
        "mlp_ratio": hidden / width,
        "num_classes": state["head.weight"].shape[0],
        "spike_mode": "plif" if "head_lif.w" in state else "lif",
    }

"""Spikformer: official names, and what an official state dict gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primesvt.models.families._names import count, under
from primesvt.models.families.spikformer.model import SpikformerConfig

__all__ = ["infer", "oddities", "official_names"]

_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.q_lif": "attn.q_lif",
    "attn.k_lif": "attn.k_lif",
    "attn.v_lif": "attn.v_lif",
    "attn.attn_lif": "attn.attn_lif",
    "attn.proj_lif": "attn.proj_lif",
    "mlp": "mlp",
    "mlp.lif1": "mlp.fc1_lif",
    "mlp.lif2": "mlp.fc2_lif",
    "unused.norm1": "norm1",
    "unused.norm2": "norm2",
}
_LAYERS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
_REST = {
    "blocks.stem": "patch_embed",
    "blocks.stem.rpe.conv": "patch_embed.rpe_conv",
    "blocks.stem.rpe.bn": "patch_embed.rpe_bn",
    "blocks.stem.rpe.lif": "patch_embed.rpe_lif",
    "head.fc": "head",
    "head.unused.norm": "norm",
    "head.unused.pos_embed": "pos_embed",
}


def official_names(config: SpikformerConfig) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> names = official_names(SpikformerConfig(layout="cifar"))
        >>> names["blocks.block3.attn.q.linear"], names["blocks.stem.conv1.conv"]
        ('block.3.attn.q_linear', 'patch_embed.proj_conv1')

    Source: github.com/ZK-Zhou/spikformer, model.py of imagenet, cifar10 and cifar10dvs.
    """
    names = dict(_REST)
    for stage in range(4):
        for ours, official in (("conv{}.conv", "conv"), ("conv{}.bn", "bn"), ("lif{}", "lif")):
            names[f"blocks.stem.{ours.format(stage)}"] = f"patch_embed.proj_{official}{stage or ''}"
    kind = _weights(config.layout)
    inside = dict(_BLOCK)
    for layer in _LAYERS:
        inside |= {f"{layer}.{kind}": f"{layer}_{kind}", f"{layer}.bn": f"{layer}_bn"}
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
    """What of the official code one would not expect, and this config reproduces.

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

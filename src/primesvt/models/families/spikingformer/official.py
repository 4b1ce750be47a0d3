"""Spikingformer: official names, and what an official state dict gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primesvt.models.families._names import count, under
from primesvt.models.families.spikingformer.model import SpikingformerConfig

__all__ = ["infer", "modernise", "oddities", "official_names"]

_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.lif": "attn.proj_lif",
    "attn.q_lif": "attn.q_lif",
    "attn.k_lif": "attn.k_lif",
    "attn.v_lif": "attn.v_lif",
    "attn.attn_lif": "attn.attn_lif",
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
    inside = dict(_BLOCK)
    for layer in ("attn.q", "attn.k", "attn.v", "attn.proj"):
        inside |= {f"{layer}.conv": f"{layer}_conv", f"{layer}.bn": f"{layer}_bn"}
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
    """Spell the last convolution of the stem and the MLPs as the present official code does.

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
    """What of the official code one would not expect, and this config reproduces.

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

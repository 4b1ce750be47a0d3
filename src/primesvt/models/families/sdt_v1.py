"""Spike-driven Transformer (arXiv 2307.01694)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._names import NUMBERED_STEM, QKV_PROJ, count, layers, under
from primesvt.models.families._sdt_v1_network import SDTv1Config, build, oddities
from primesvt.models.families.family import Family

__all__ = ["FAMILY", "SDTv1Config", "entries", "infer", "official_names"]


_STEM = {**NUMBERED_STEM, "unused.rpe_lif": "rpe_lif.w"}
_BLOCK = {
    "": "",
    "attn": "attn",
    "attn.lif": "attn.shortcut_lif",
    **{f"attn.{part}_lif": f"attn.{part}_lif" for part in ("q", "k", "v")},
    **layers("attn", "attn", QKV_PROJ),
    "attn.gate_lif": "attn.talking_heads_lif",
    "attn.unused.talking_heads": "attn.talking_heads.weight",
    "attn.unused.attn_lif": "attn.attn_lif.w",
    "mlp": "mlp",
    **{f"mlp.lif{i}": f"mlp.fc{i}_lif" for i in (1, 2)},
    **layers("mlp", "mlp", ("fc1", "fc2")),
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


_README = "authors' README"

# Blocks, width, top-1, source.
_IMAGENET: tuple[tuple[int, int, float, str], ...] = (
    (8, 512, 74.57, _README),
    (8, 384, 72.28, _README),
    (6, 512, 74.11, _README),
    (10, 512, 74.66, _README),
    (8, 768, 76.3, "secondary, at 224 px; the authors' README says 77.07, at 288 px"),
)


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'sdt_v1_8_512'
    """
    for depth, width, top1, source in _IMAGENET:
        yield ModelEntry(
            name=f"sdt_v1_{depth}_{width}",
            config=SDTv1Config(depth=depth, embed_dim=width),
            data=IMAGENET,
            published=Published(top1=top1, time_steps=4, source=source),
        )
    for classes in (10, 100):
        for width in (512, 256):
            yield ModelEntry(
                name=f"sdt_v1_cifar{classes}_2_{width}",
                config=SDTv1Config(
                    depth=2, embed_dim=width, num_classes=classes, pooling_stat="0011"
                ),
                data=CIFAR,
            )
    yield from _event_entries()
    yield from _small_entries()


def _event_entries() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="sdt_v1_cifar10dvs",
        config=SDTv1Config(
            in_channels=2,
            num_classes=10,
            time_steps=10,
            depth=2,
            embed_dim=256,
            pooling_stat="0011",
            dvs_mode=True,
        ),
        data=events(2, 64),
    )
    yield ModelEntry(
        name="sdt_v1_gesture",
        config=SDTv1Config(
            in_channels=2,
            num_classes=11,
            time_steps=16,
            depth=2,
            embed_dim=256,
            pooling_stat="0111",
        ),
        data=events(2, 128),
    )


def _small_entries() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="sdt_v1_small",
        config=SDTv1Config(num_classes=10, depth=2, embed_dim=96, pooling_stat="0011"),
        data=CIFAR,
    )
    yield ModelEntry(
        name="sdt_v1_digits",
        config=SDTv1Config(
            in_channels=1,
            num_classes=10,
            time_steps=2,
            depth=2,
            embed_dim=48,
            num_heads=4,
            pooling_stat="0001",
        ),
        data=DIGITS,
    )


FAMILY = Family(
    title="Spike-driven Transformer",
    config=SDTv1Config,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

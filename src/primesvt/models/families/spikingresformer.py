"""SpikingResformer (arXiv 2403.14302)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._names import count, under
from primesvt.models.families._spikingresformer_network import (
    SpikingResformer,
    SpikingResformerConfig,
    build,
    pairs,
)
from primesvt.models.families.family import Family

__all__ = ["FAMILY", "SpikingResformerConfig", "entries", "infer", "oddities", "official_names"]


_PARTS = {
    "attn": {
        "": "",
        "lif": "activation_in",
        "w.conv": "W",
        "w.bn": "norm.bn",
        "attn_lif": "activation_attn",
        "out_lif": "activation_out",
        "proj.conv": "Wproj",
        "proj.bn": "norm_proj.bn",
    },
    "mlp": {
        "": "",
        "lif1": "up.0",
        "fc1.conv": "up.1",
        "fc1.bn": "up.2.bn",
        "lif2": "conv.0.0",
        "conv.conv": "conv.0.1",
        "conv.bn": "conv.0.2.bn",
        "lif3": "down.0",
        "fc2.conv": "down.1",
        "fc2.bn": "down.2.bn",
    },
}
_STEM = {"": "", "conv": "0", "bn": "1.bn"}
_DOWN = {"": "", "lif": "activation", "conv": "conv", "bn": "norm.bn"}


def official_names(config: SpikingResformerConfig) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> official_names(SpikingResformerConfig())["blocks.block2_1.mlp.conv.conv"]
        'layers.1.4.conv.0.1'

    Source: github.com/xyshi2000/SpikingResformer, models/spikingresformer.py.
    """
    names = {"head.pool": "avgpool", "head.fc": "classifier"}
    names |= under("blocks.stem", "prologue", _STEM)
    for stage, blocks in enumerate(pairs(config.layers)):
        place = 0
        if stage:
            names |= under(f"blocks.down{stage + 1}", f"layers.{stage}.0", _DOWN)
            place = 1
        for index, parts in enumerate(blocks):
            for part in parts:
                ours = f"blocks.block{stage + 1}_{index}.{part}"
                names |= under(ours, f"layers.{stage}.{place}", _PARTS[part])
                place += 1
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'prologue.0.weight'
    """
    stem = state["prologue.0.weight"].shape
    classes = state["classifier.weight"].shape[0]
    # A first stage without layers leaves no key.
    places = [key.split(".")[1] for key in state if key.startswith("layers.")]
    stages = range(1 + max((int(place) for place in places if place.isdecimal()), default=0))
    layers = tuple(_layers(state, stage) for stage in stages)
    dims = [state[f"layers.{i}.0.conv.weight"].shape[0] for i in stages[1:]]
    attention = [_first(state, i, ".firing_rate_x", ".W.weight") for i in stages]
    found: dict[str, Any] = {
        "in_channels": stem[1],
        "num_classes": classes,
        "layout": "imagenet" if stem[-1] == 7 else "cifar",
        "layers": layers,
        "embed_dims": (stem[0], *dims),
        "num_heads": tuple(pair[0].shape[2] if pair else 1 for pair in attention),
        "patch_sizes": tuple(pair[1].shape[-1] if pair else 1 for pair in attention),
        "spike_mode": "plif" if any(key.endswith(".w") for key in state) else "lif",
    }
    networks = (_first(state, i, ".up.1.weight", ".conv.0.1.weight") for i in stages)
    shapes = [(up.shape, conv.shape) for up, conv in filter(None, networks)]
    if shapes:
        found["mlp_ratio"] = shapes[0][0][0] / shapes[0][0][1]
        grouped = [conv[1] for _, conv in shapes if conv[1] < conv[0]]
        # A group may be larger than asked for, where the size does not divide the width.
        found["group_size"] = min(grouped) if grouped else max(conv[0] for _, conv in shapes)
    return found


def _layers(state: Mapping[str, Tensor], stage: int) -> tuple[str, ...]:
    """The layers of one stage in order; the second stage on starts with a downsampling."""
    start = 1 if stage else 0
    number = count(state, f"layers.{stage}.{{}}.", start=start)
    kinds = []
    for place in range(start, start + number):
        attention = f"layers.{stage}.{place}.W.weight" in state
        if not attention:
            state[f"layers.{stage}.{place}.up.1.weight"]
        kinds.append("DSSA" if attention else "GWFFN")
    return tuple(kinds)


def _first(state: Mapping[str, Tensor], stage: int, *ends: str) -> list[Tensor]:
    """The named tensors of the first layer in a stage that has one of them; nothing if none has."""
    for key in state:
        if key.startswith(f"layers.{stage}.") and key.endswith(ends[0]):
            return [state[key.removesuffix(ends[0]) + end] for end in ends]
    return []


def oddities(config: SpikingResformerConfig) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this model reproduces.

    Example:
        >>> len(oddities(SpikingResformerConfig()))
        2
    """
    return (
        "attention is scaled by firing rates measured in training and stored with the weights;"
        " fresh weights have none, so their attention is silent until the first training batch",
        "the attention scale counts the patches of the image size the model was made for, not of"
        f" the image it sees; img_size={config.img_size}"
        f"{', so the first input decides' if config.img_size is None else ''}",
    )


_SECONDARY = "secondary: tables of later papers"

_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Published | None]] = {
    "l": (
        (128, 512, 1024),
        (2, 8, 16),
        Published(top1=79.4, time_steps=4, source="authors' abstract; secondary: at 288 pixels"),
    ),
    "m": (
        (64, 384, 768),
        (1, 6, 12),
        Published(top1=77.24, time_steps=4, source=_SECONDARY),
    ),
    "s": ((64, 256, 512), (1, 4, 8), None),
    "ti": (
        (64, 192, 384),
        (1, 3, 6),
        Published(top1=74.34, time_steps=4, source=_SECONDARY),
    ),
}
_CIFAR = SpikingResformerConfig(
    embed_dims=(64, 192, 384), num_heads=(1, 3, 6), num_classes=10, img_size=32, layout="cifar"
)


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'spikingresformer_l'
    """
    for size, (widths, heads, published) in _SIZES.items():
        yield ModelEntry(
            name=f"spikingresformer_{size}",
            config=SpikingResformerConfig(embed_dims=widths, num_heads=heads),
            data=IMAGENET,
            published=published,
        )
    for classes in (10, 100):
        yield ModelEntry(
            name=f"spikingresformer_cifar{classes}",
            config=replace(_CIFAR, num_classes=classes),
            data=CIFAR,
        )
    yield from _event_cameras()
    yield from _small()


def _event_cameras() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="spikingresformer_cifar10dvs",
        config=replace(_CIFAR, time_steps=16, img_size=64),
        data=events(3, 64),
    )
    yield ModelEntry(
        name="spikingresformer_gesture",
        config=replace(
            _CIFAR,
            embed_dims=(32, 96, 192),
            num_classes=11,
            time_steps=16,
            img_size=64,
            group_size=32,
            spike_mode="plif",
        ),
        data=events(3, 64),
    )


def _small() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="spikingresformer_small",
        config=SpikingResformerConfig(
            layers=(("DSSA", "GWFFN"),) * 3,
            embed_dims=(24, 48, 96),
            num_heads=(1, 2, 4),
            group_size=16,
            num_classes=10,
            img_size=32,
            layout="cifar",
        ),
        data=CIFAR,
    )
    yield ModelEntry(
        name="spikingresformer_digits",
        config=SpikingResformerConfig(
            layers=(("DSSA", "GWFFN"),) * 2,
            embed_dims=(24, 48),
            num_heads=(2, 4),
            patch_sizes=(2, 1),
            group_size=24,
            num_classes=10,
            in_channels=1,
            time_steps=2,
            img_size=8,
            layout="cifar",
        ),
        data=DIGITS,
    )


FAMILY = Family(
    title="SpikingResformer",
    config=SpikingResformerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
    model=SpikingResformer,
)

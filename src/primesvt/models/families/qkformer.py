"""QKFormer, a hierarchical spiking transformer with Q-K attention (arXiv 2403.16552)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families._names import QKV_PROJ, count, layers, under
from primesvt.models.families._qkformer_network import STEMS, QKFormerConfig, build
from primesvt.models.families.family import Family

__all__ = ["FAMILY", "QKFormerConfig", "entries", "infer", "oddities", "official_names"]


# Per layout: the convolutions of the first patch embedding, then those of the later ones.
_CONVS = {
    "imagenet": (("proj", "proj1", "proj2"), ("proj3", "proj4")),
    "cifar": (("proj", "proj1"), ("proj3", "proj4")),
    "dvs": (("proj", "proj1", "proj2", "proj3"), ("proj", "proj4")),
}
_LAYER = {"conv": "conv", "bn": "bn", "lif": "lif"}


def official_names(config: QKFormerConfig) -> dict[str, str]:
    """Map our module names to those of the official code, for every layer and most containers.

    Example:
        >>> official_names(QKFormerConfig())["blocks.block3_0.attn.q.conv"]
        'stage3.0.attn.q_conv'

    Source: github.com/zhouchenlin2096/QKFormer, imagenet/qkformer.py, cifar10/model.py,
    cifar10-dvs/model.py.
    """
    names = {"head.fc": "head"}
    for stage, depth in enumerate(config.depths, start=1):
        names |= under(f"blocks.stem{stage}", f"patch_embed{stage}", _stem(config, stage))
        inside = _block(config, full=stage == len(config.depths))
        for index in range(depth):
            names |= under(f"blocks.block{stage}_{index}", f"stage{stage}.{index}", inside)
    return names


def _stem(config: QKFormerConfig, stage: int) -> dict[str, str]:
    later = stage > 1
    fork = STEMS[config.layout][later].fork
    names = {"": ""} | {f"shortcut.{ours}": f"proj_res_{ours}" for ours in _LAYER}
    for number, conv in enumerate(_CONVS[config.layout][later]):
        path = f"entry.{number}" if number < fork else f"body.{number - fork}"
        names |= {f"{path}.{ours}": f"{conv}_{ours}" for ours in _LAYER}
    return names


def _block(config: QKFormerConfig, *, full: bool) -> dict[str, str]:
    imagenet = config.layout == "imagenet"
    attention = ("attn" if imagenet else "ssa") if full else "tssa"
    names = {"": "", "attn": attention, "attn.attn_lif": f"{attention}.attn_lif", "mlp": "mlp"}
    parts = QKV_PROJ if full else ("q", "k", "proj")
    names |= layers("attn", attention, parts)
    for part in parts:
        mixed = full and part == "proj" and config.proj_neuron == "mixed"
        names[f"attn.{part}_lif{'.lif' if mixed else ''}"] = f"{attention}.{part}_lif"
    for number in (1, 2):
        layer = f"mlp.{'fc' if imagenet else 'mlp'}{number}"
        names |= {
            f"mlp.fc{number}.conv": f"{layer}_conv",
            f"mlp.fc{number}.bn": f"{layer}_bn",
            f"mlp.lif{number}": f"{layer}_lif",
        }
    return names


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings that leave a trace in the shapes of an official state dict.

    Raises ``KeyError`` with the name of a tensor that is missing.

    Example:
        >>> infer({})
        Traceback (most recent call last):
        ...
        KeyError: 'patch_embed1.proj_res_conv.weight'
    """
    stages = range(1, max(1, count(state, "patch_embed{}.", start=1)) + 1)
    widths = tuple(state[f"patch_embed{i}.proj_res_conv.weight"].shape[0] for i in stages)
    found: dict[str, Any] = {
        "layout": _layout(state),
        "in_channels": state["patch_embed1.proj_conv.weight"].shape[1],
        "embed_dims": widths,
        "depths": tuple(count(state, f"stage{i}.{{}}.") for i in stages),
        "num_classes": state["head.weight"].shape[0],
    }
    name = "fc1" if found["layout"] == "imagenet" else "mlp1"
    ratios = [
        state[f"stage{i}.0.mlp.{name}_conv.weight"].shape[0] / width if depth else None
        for i, width, depth in zip(stages, widths, found["depths"], strict=True)
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(set(known)) == 1:
        found["mlp_ratio"] = known[0]
    elif known:
        found["mlp_ratio"] = tuple(known[0] if ratio is None else ratio for ratio in ratios)
    return found


def _layout(state: Mapping[str, Tensor]) -> str:
    """The official class, told by the number of convolutions in the first patch embedding."""
    if "patch_embed1.proj3_conv.weight" in state:
        return "dvs"
    return "imagenet" if "patch_embed1.proj2_conv.weight" in state else "cifar"


def oddities(config: QKFormerConfig) -> tuple[str, ...]:
    """Sentences on unexpected behaviour of the official code that this config reproduces.

    Example:
        >>> [line.split(":")[0] for line in oddities(QKFormerConfig())]
        ['the images of a batch influence each other', 'rectangular images work']
    """
    rectangular = (
        "rectangular images work: the official self-attention swaps height and width and takes"
        " square ones only; on those both agree"
    )
    if not config.batch_mixing:
        return (rectangular,)
    return (
        "the images of a batch influence each other: the neuron behind the self-attention runs over"
        ' time steps and images; proj_neuron="per_image" keeps them apart, but published weights'
        " were trained with it and lose about 5 points",
        rectangular,
    )


# Width of the last stage: heads, top-1 (which depends on the batch size, and that was not given).
_IMAGENET = {768: (12, 84.22), 512: (8, 82.04), 384: (6, 78.80)}
_EVENTS = {"cifar10dvs": (10, 1), "gesture": (11, 4)}  # classes, MLP ratio


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'qkformer_10_768'
    """
    for width, (heads, top1) in _IMAGENET.items():
        yield ModelEntry(
            name=f"qkformer_10_{width}",
            config=QKFormerConfig(embed_dims=(width // 4, width // 2, width), num_heads=heads),
            data=IMAGENET,
            published=Published(top1=top1, time_steps=4, source="authors' README"),
            aliases=(f"hst_10_{width}",),
        )
    for classes in (10, 100):
        yield ModelEntry(
            name=f"qkformer_cifar{classes}_4_384",
            config=QKFormerConfig(
                layout="cifar",
                num_classes=classes,
                embed_dims=(96, 192, 384),
                depths=(1, 1, 2),
                num_heads=8,
            ),
            data=CIFAR,
        )
    for name, (classes, ratio) in _EVENTS.items():
        yield ModelEntry(
            name=f"qkformer_{name}",
            config=QKFormerConfig(
                layout="dvs",
                in_channels=2,
                num_classes=classes,
                time_steps=16,
                embed_dims=(128, 256),
                depths=(1, 1),
                num_heads=16,
                mlp_ratio=ratio,
            ),
            data=events(2, 128),
        )
    yield from _small()


def _small() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="qkformer_small",
        config=QKFormerConfig(
            layout="cifar", num_classes=10, embed_dims=(24, 48, 96), depths=(1, 1, 2), num_heads=8
        ),
        data=CIFAR,
    )
    yield ModelEntry(
        name="qkformer_digits",
        config=QKFormerConfig(
            layout="cifar",
            in_channels=1,
            num_classes=10,
            time_steps=2,
            embed_dims=(24, 48),
            depths=(1, 1),
            num_heads=4,
        ),
        data=DIGITS,
    )


FAMILY = Family(
    title="QKFormer",
    config=QKFormerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

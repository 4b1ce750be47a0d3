"""Spikformer: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.spikformer.model import SpikformerConfig

__all__ = ["entries"]

_SECONDARY = "secondary: tables of later papers"
_BOTH = "README of Spikingformer; secondary: tables of later papers"
# The official code fixes the head count for 8-512 only; the other sizes assume the same.
_IMAGENET = (
    (8, 512, 73.38, _BOTH),
    (8, 384, 70.24, _BOTH),
    (6, 512, 72.46, _SECONDARY),
    (10, 512, 73.68, _SECONDARY),
    (8, 768, 74.81, _BOTH),
)
# Official are 12 heads for 4-384; the others assume 32 channels per head as well.
_CIFAR = ((4, 384, 12), (4, 256, 8), (2, 384, 12))


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'spikformer_8_512'
    """
    for depth, width, top1, source in _IMAGENET:
        yield ModelEntry(
            name=f"spikformer_{depth}_{width}",
            config=SpikformerConfig(embed_dim=width, depth=depth),
            data=IMAGENET,
            published=Published(top1=top1, time_steps=4, source=source),
        )
    for classes in (10, 100):
        for depth, width, heads in _CIFAR:
            yield ModelEntry(
                name=f"spikformer_cifar{classes}_{depth}_{width}",
                config=_cifar(classes, depth, width, heads),
                data=CIFAR,
            )
    yield ModelEntry(name="spikformer_cifar10dvs", config=_dvs(), data=events(2, 128))
    yield ModelEntry(
        name="spikformer_small",
        config=_cifar(10, 2, 96, 4),
        data=CIFAR,
    )
    yield ModelEntry(name="spikformer_digits", config=_digits(), data=DIGITS)


def _cifar(classes: int, depth: int, width: int, heads: int) -> SpikformerConfig:
    return SpikformerConfig(
        layout="cifar",
        num_classes=classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        pooling_stat="0011",
    )


def _dvs() -> SpikformerConfig:
    return SpikformerConfig(
        layout="dvs",
        in_channels=2,
        num_classes=10,
        time_steps=16,
        embed_dim=256,
        depth=2,
        num_heads=16,
        attn_scale=0.25,
    )


def _digits() -> SpikformerConfig:
    return SpikformerConfig(
        layout="cifar",
        in_channels=1,
        num_classes=10,
        time_steps=2,
        embed_dim=48,
        depth=2,
        num_heads=4,
        pooling_stat="0001",
    )

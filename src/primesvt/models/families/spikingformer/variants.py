"""Spikingformer: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.spikingformer.model import SpikingformerConfig

__all__ = ["entries"]

_IMAGENET = ((512, 74.79), (384, 72.45), (768, 75.85))
# Official configs: 12 heads for 4-384 on CIFAR-10 and 8 on CIFAR-100; the other sizes go with them.
_CIFAR = (
    (10, 4, 384, 12),
    (10, 4, 256, 8),
    (10, 2, 384, 12),
    (100, 4, 384, 8),
    (100, 4, 256, 8),
    (100, 2, 384, 8),
)
_EVENTS = (("cifar10dvs", 10), ("gesture", 11))


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'spikingformer_8_512'
    """
    for width, top1 in _IMAGENET:
        yield ModelEntry(
            name=f"spikingformer_8_{width}",
            config=SpikingformerConfig(embed_dim=width),
            data=IMAGENET,
            published=Published(top1=top1, time_steps=4, source="authors' README"),
        )
    for classes, depth, width, heads in _CIFAR:
        yield ModelEntry(
            name=f"spikingformer_cifar{classes}_{depth}_{width}",
            config=_cifar(classes, depth, width, heads),
            data=CIFAR,
        )
    for dataset, classes in _EVENTS:
        yield ModelEntry(name=f"spikingformer_{dataset}", config=_dvs(classes), data=events(2, 128))
    yield ModelEntry(name="spikingformer_small", config=_cifar(10, 2, 96, 4), data=CIFAR)
    yield ModelEntry(name="spikingformer_digits", config=_digits(), data=DIGITS)


def _cifar(classes: int, depth: int, width: int, heads: int) -> SpikingformerConfig:
    return SpikingformerConfig(
        layout="cifar",
        num_classes=classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        pooling_stat="0011",
    )


def _dvs(classes: int) -> SpikingformerConfig:
    return SpikingformerConfig(
        in_channels=2,
        num_classes=classes,
        time_steps=16,
        embed_dim=256,
        depth=2,
        num_heads=16,
        tau=1.5,
    )


def _digits() -> SpikingformerConfig:
    return SpikingformerConfig(
        layout="cifar",
        in_channels=1,
        num_classes=10,
        time_steps=2,
        embed_dim=48,
        depth=2,
        num_heads=4,
        pooling_stat="0001",
    )

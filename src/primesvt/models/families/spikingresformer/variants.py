"""SpikingResformer: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.spikingresformer.model import SpikingResformerConfig

__all__ = ["entries"]

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

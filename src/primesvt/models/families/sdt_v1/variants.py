"""Spike-driven Transformer: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.sdt_v1.model import SDTv1Config

__all__ = ["entries"]

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

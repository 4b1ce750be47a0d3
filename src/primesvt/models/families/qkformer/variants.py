"""QKFormer: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator

from primesvt.data.config import CIFAR, DIGITS, IMAGENET, events
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.qkformer.model import QKFormerConfig

__all__ = ["entries"]

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

"""Spike-driven Transformer V2: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator

from primesvt.data.config import CIFAR, DIGITS, IMAGENET
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.sdt_v2.model import SDTv2Config

__all__ = ["entries"]

# The 15M and 124M sizes have no figure in a source that could be checked.
_SIZES: dict[str, tuple[tuple[int, ...], str | None, Published | None, Published | None]] = {
    "15m": ((64, 128, 256, 360), None, None, None),
    "31m": (
        (96, 192, 384, 480),
        "metaspikformer_8_384",
        Published(top1=77.2, time_steps=4, source="secondary: tables of later papers"),
        None,
    ),
    "55m": (
        (128, 256, 512, 640),
        "metaspikformer_8_512",
        Published(top1=79.7, time_steps=4, source="secondary: tables of later papers"),
        Published(top1=80.0, time_steps=4, source="authors' README and abstract"),
    ),
    "124m": ((192, 384, 768, 960), "metaspikformer_8_768", None, None),
}


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and two small ones of our own.

    Example:
        >>> next(entries()).name
        'sdt_v2_15m'
    """
    for size, (widths, alias, published, published_kd) in _SIZES.items():
        yield ModelEntry(
            name=f"sdt_v2_{size}",
            config=SDTv2Config(embed_dims=widths),
            data=IMAGENET,
            published=published,
            aliases=(alias,) if alias else (),
        )
        yield ModelEntry(
            name=f"sdt_v2_{size}_kd",
            config=SDTv2Config(embed_dims=widths, distillation=True),
            data=IMAGENET,
            published=published_kd,
        )
    yield from _small()


def _small() -> Iterator[ModelEntry]:
    yield ModelEntry(
        name="sdt_v2_small",
        config=SDTv2Config(
            embed_dims=(32, 64, 128, 160),
            num_classes=10,
            conv_depths=(1, 1, 1),
            depths=(2, 1),
            stem_kernel=3,
            strides=(1, 2, 1, 2, 1),
        ),
        data=CIFAR,
    )
    yield ModelEntry(
        name="sdt_v2_digits",
        config=SDTv2Config(
            in_channels=1,
            num_classes=10,
            time_steps=2,
            embed_dims=(16, 16, 32, 40),
            num_heads=4,
            conv_depths=(1, 1, 1),
            depths=(1, 1),
            stem_kernel=3,
            strides=(1, 1, 2, 1, 1),
        ),
        data=DIGITS,
        weights="sdt_v2_digits.safetensors",
    )

"""SDT-V3 large: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primesvt.data.config import CIFAR, IMAGENET
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.sdt_v3_large.model import SDTv3LargeConfig

__all__ = ["entries"]

# Whether the published figures are those of one head or of two is not said; two is the default of
# the official class.
_SIZES: dict[str, tuple[dict[str, Any], str, Published]] = {
    "171m": (
        {"embed_dims": (196, 384, 768)},
        "spikformer12_768",
        Published(
            top1=85.1,
            time_steps=1,
            source="secondary: eight virtual time steps, 224 pixels (abstract: 86.2 at 384)",
        ),
    ),
    "83m": (
        {"embed_dims": (128, 256, 512), "rep_ratio": 1},
        "spikformer12_512",
        Published(top1=84.0, time_steps=1, source="authors' abstract, eight virtual time steps"),
    ),
}


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and a small one of our own.

    Example:
        >>> next(entries()).name
        'sdt_v3_large_171m_kd'

    Source: official sizes; figures of arXiv 2411.16061.
    """
    for size, (sizes, alias, published) in _SIZES.items():
        yield ModelEntry(
            name=f"sdt_v3_large_{size}_kd",
            config=SDTv3LargeConfig(spike_levels=8, distillation=True, **sizes),
            data=IMAGENET,
            published=published,
            aliases=(alias,),
        )
        yield ModelEntry(
            name=f"sdt_v3_large_{size}",
            config=SDTv3LargeConfig(spike_levels=8, **sizes),
            data=IMAGENET,
        )
    yield ModelEntry(
        name="sdt_v3_large_small",
        config=SDTv3LargeConfig(
            embed_dims=(16, 32, 64),
            num_classes=10,
            conv_depths=(1, 1, 1),
            depths=(3,),
            stem_kernel=3,
            strides=(1, 2, 1, 2),
        ),
        data=CIFAR,
    )

"""SDT-V3 base: the sizes and their published figures."""

from __future__ import annotations

from collections.abc import Iterator

from primesvt.data.config import CIFAR, IMAGENET
from primesvt.models.entry import ModelEntry, Published
from primesvt.models.families.sdt_v3.model import SDTv3Config

__all__ = ["entries"]

# No figure was found for the two smaller sizes.
_SIZES: dict[str, tuple[tuple[int, ...], str, Published | None]] = {
    "19m": (
        (64, 128, 256, 360),
        "efficient_spiking_transformer_l",
        Published(top1=79.8, time_steps=1, source="authors' abstract, four virtual time steps"),
    ),
    "10m": (
        (48, 96, 192, 240),
        "efficient_spiking_transformer_m",
        Published(top1=78.5, time_steps=1, source="authors' abstract, four virtual time steps"),
    ),
    "5m": ((32, 64, 128, 192), "efficient_spiking_transformer_s", None),
    "3m": ((24, 48, 96, 128), "efficient_spiking_transformer_t", None),
}


def entries() -> Iterator[ModelEntry]:
    """Official sizes, and a small one of our own.

    Example:
        >>> next(entries()).name
        'sdt_v3_19m'

    Source: official sizes; figures as in the abstract of arXiv 2411.16061.
    """
    for size, (widths, alias, published) in _SIZES.items():
        yield ModelEntry(
            name=f"sdt_v3_{size}",
            config=SDTv3Config(embed_dims=widths),
            data=IMAGENET,
            published=published,
            aliases=(alias,),
        )
    yield ModelEntry(
        name="sdt_v3_small",
        config=SDTv3Config(
            embed_dims=(16, 32, 64, 96),
            num_classes=10,
            conv_depths=(1, 1, 1),
            depths=(2, 1),
            stem_kernel=3,
            strides=(1, 2, 1, 2, 1),
        ),
        data=CIFAR,
    )

"""Spike-driven Transformer V3, large sizes (arXiv 2411.16061)."""

from primesvt.models.families.family import Family
from primesvt.models.families.sdt_v3_large.model import SDTv3LargeConfig, build
from primesvt.models.families.sdt_v3_large.official import infer, oddities, official_names
from primesvt.models.families.sdt_v3_large.variants import entries

__all__ = ["FAMILY", "SDTv3LargeConfig"]

FAMILY = Family(
    title="Spike-driven Transformer V3 (large)",
    config=SDTv3LargeConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

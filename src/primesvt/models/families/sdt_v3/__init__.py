"""Spike-driven Transformer V3, base sizes: E-SpikeFormer (arXiv 2411.16061)."""

from primesvt.models.families.family import Family
from primesvt.models.families.sdt_v3.model import SDTv3Config, build
from primesvt.models.families.sdt_v3.official import infer, oddities, official_names
from primesvt.models.families.sdt_v3.variants import entries

__all__ = ["FAMILY", "SDTv3Config"]

FAMILY = Family(
    title="Spike-driven Transformer V3",
    config=SDTv3Config,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

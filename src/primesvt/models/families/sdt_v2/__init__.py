"""Spike-driven Transformer V2, Meta-SpikeFormer (arXiv 2404.03663)."""

from primesvt.models.families.family import Family
from primesvt.models.families.sdt_v2.model import SDTv2Config, build
from primesvt.models.families.sdt_v2.official import infer, oddities, official_names
from primesvt.models.families.sdt_v2.variants import entries

__all__ = ["FAMILY", "SDTv2Config"]

FAMILY = Family(
    title="Spike-driven Transformer V2",
    config=SDTv2Config,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

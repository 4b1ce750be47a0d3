"""Spike-driven Transformer (arXiv 2307.01694)."""

from primesvt.models.families.family import Family
from primesvt.models.families.sdt_v1.model import SDTv1Config, build, oddities
from primesvt.models.families.sdt_v1.official import infer, official_names
from primesvt.models.families.sdt_v1.variants import entries

__all__ = ["FAMILY", "SDTv1Config"]

FAMILY = Family(
    title="Spike-driven Transformer",
    config=SDTv1Config,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

"""QKFormer, a hierarchical spiking transformer with Q-K attention (arXiv 2403.16552)."""

from primesvt.models.families.family import Family
from primesvt.models.families.qkformer.model import QKFormerConfig, build
from primesvt.models.families.qkformer.official import infer, oddities, official_names
from primesvt.models.families.qkformer.variants import entries

__all__ = ["FAMILY", "QKFormerConfig"]

FAMILY = Family(
    title="QKFormer",
    config=QKFormerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

"""SpikingResformer (arXiv 2403.14302)."""

from primesvt.models.families.family import Family
from primesvt.models.families.spikingresformer.model import (
    SpikingResformer,
    SpikingResformerConfig,
    build,
)
from primesvt.models.families.spikingresformer.official import infer, oddities, official_names
from primesvt.models.families.spikingresformer.variants import entries

__all__ = ["FAMILY", "SpikingResformerConfig"]

FAMILY = Family(
    title="SpikingResformer",
    config=SpikingResformerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
    model=SpikingResformer,
)

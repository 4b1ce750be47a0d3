"""Spikingformer (arXiv 2304.11954): the ImageNet, CIFAR and event-camera classes."""

from primesvt.models.families.family import Family
from primesvt.models.families.spikingformer.model import SpikingformerConfig, build
from primesvt.models.families.spikingformer.official import (
    infer,
    modernise,
    oddities,
    official_names,
)
from primesvt.models.families.spikingformer.variants import entries

__all__ = ["FAMILY", "SpikingformerConfig"]

FAMILY = Family(
    title="Spikingformer",
    config=SpikingformerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    modernise=modernise,
    oddities=oddities,
)

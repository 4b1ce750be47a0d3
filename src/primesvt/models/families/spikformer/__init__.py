"""Spikformer (arXiv 2209.15425): the ImageNet, CIFAR and event-camera classes."""

from primesvt.models.families.family import Family
from primesvt.models.families.spikformer.model import SpikformerConfig, build
from primesvt.models.families.spikformer.official import infer, oddities, official_names
from primesvt.models.families.spikformer.variants import entries

__all__ = ["FAMILY", "SpikformerConfig"]

FAMILY = Family(
    title="Spikformer",
    config=SpikformerConfig,
    build=build,
    official_names=official_names,
    infer=infer,
    entries=entries,
    oddities=oddities,
)

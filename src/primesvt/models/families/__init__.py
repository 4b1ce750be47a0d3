"""The families of models by name; each builds its models and maps official names onto ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from primesvt.models.config import ModelConfig
from primesvt.models.families.family import Family
from primesvt.models.spiking_vit import SpikingViT
from primesvt.registry import FAMILIES

__all__ = ["FAMILIES", "Family", "build_model", "family_of"]


def family_of(name: str) -> Family:
    """Return a family by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> family_of("sdt_v2").build.__name__
        'build'
    """
    found: Family = FAMILIES.find(name)
    return found


def build_model(config: ModelConfig | Mapping[str, Any]) -> SpikingViT:
    """Build a model with fresh weights from its config, or from a stored ``config.to_dict()``.

    Example:
        >>> from primesvt.models import model_entry
        >>> build_model(model_entry("sdt_v2_digits").config.to_dict()).time_steps
        2
    """
    if isinstance(config, ModelConfig):
        return family_of(config.family).build(config)
    family = family_of(str(config.get("family", "")))
    return family.build(family.config.from_dict(config))

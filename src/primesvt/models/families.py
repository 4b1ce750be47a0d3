"""The families by name: how a config becomes a model, and how official names map onto ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from primesvt.models import sdt_v2
from primesvt.models.config import ModelConfig
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["FAMILIES", "Family", "build_model", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family module provides.

    ``official_names`` maps our module names to the official ones; ``infer`` reads the settings
    that an official state dict's shapes give away and raises ``KeyError`` for a missing tensor.

    Example:
        >>> FAMILIES["sdt_v2"].config.__name__
        'SDTv2Config'
    """

    config: type[ModelConfig]
    build: Callable[[Any], SpikingViT]
    official_names: Callable[[Any], dict[str, str]]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]


FAMILIES: dict[str, Family] = {
    "sdt_v2": Family(
        config=sdt_v2.SDTv2Config,
        build=sdt_v2.build,
        official_names=sdt_v2.official_names,
        infer=sdt_v2.infer,
    ),
}


def family_of(name: str) -> Family:
    """Return a family by name; an unknown one raises ``ValueError`` with the known names.

    Example:
        >>> family_of("sdt_v2").build.__name__
        'build'
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


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

"""Checkpoints of the authors: their names onto ours and back, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from primesvt.models.families import Family, build_model, family_of
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import check_shapes

__all__ = ["from_official", "official_keys", "official_modules", "to_official"]


def from_official(
    state_dict: Mapping[str, Tensor], *, family: str = "sdt_v2", **overrides: Any
) -> SpikingViT:
    """Build the model an official state dict belongs to, and load the weights.

    Widths, depths, ratios, classes and the distillation head are read off the shapes; time steps
    and head count leave no trace there and come from ``overrides`` or the family's defaults.
    Missing, unexpected and misshapen tensors raise one ``ValueError``.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits")
        >>> same = from_official(to_official(model), num_heads=4, strides=(1, 1, 2, 1, 1))
        >>> bool((same.head.fc.weight == model.head.fc.weight).all())
        True
    """
    known = family_of(family)
    config = known.config.from_dict(_inferred(known, family, state_dict) | overrides)
    with torch.device("meta"):
        shapes = to_official(build_model(config))
    check_shapes(shapes, state_dict, source=f"the {family} state dict")
    model = build_model(config)
    model.load_state_dict({ours: state_dict[key] for ours, key in official_keys(model).items()})
    return model


def to_official(model: SpikingViT) -> dict[str, Tensor]:
    """Return a model's state dict under the official names.

    Example:
        >>> from primesvt.models import create_model
        >>> next(iter(to_official(create_model("sdt_v2_digits"))))
        'downsample1_1.encode_conv.weight'
    """
    state = model.state_dict()
    return {official: state[ours] for ours, official in official_keys(model).items()}


def official_keys(model: SpikingViT) -> dict[str, str]:
    """Map every key of our state dict to the official key.

    Example:
        >>> from primesvt.models import create_model
        >>> official_keys(create_model("sdt_v2_digits"))["head.fc.bias"]
        'head.bias'
    """
    names = family_of(model.config.family).official_names(model.config)
    keys = {}
    for key in model.state_dict():
        module, _, tensor = key.rpartition(".")
        keys[key] = names.get(key) or f"{names[module]}.{tensor}"
    return keys


def official_modules(model: SpikingViT) -> dict[str, str]:
    """Map the names of our modules to the official ones; containers of our own have none.

    Example:
        >>> from primesvt.models import create_model
        >>> official_modules(create_model("sdt_v2_digits"))["blocks.conv1a.sep.dw"]
        'ConvBlock1_1.0.Conv.dwconv'
    """
    names = family_of(model.config.family).official_names(model.config)
    return {ours: names[ours] for ours, _ in model.named_modules() if ours in names}


def _inferred(known: Family, family: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        return known.infer(state)
    except (KeyError, AttributeError, IndexError) as error:
        first = ", ".join(map(str, list(state)[:10])) or "nothing"
        raise ValueError(
            f"this is no {family} state dict, or a truncated one: {error} is missing or no tensor;"
            f" it has {len(state)} entries, first: {first}"
        ) from error

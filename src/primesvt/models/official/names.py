"""Map our names of modules and tensors to those of the official code."""

from __future__ import annotations

import torch
from torch import Tensor

from primesvt.models.config import ModelConfig
from primesvt.models.families import build_model, family_of
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["official_keys", "official_modules", "official_shapes"]


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


def official_shapes(config: ModelConfig) -> dict[str, Tensor]:
    """The official state dict of a model of this config, as tensors on the meta device.

    Example:
        >>> from primesvt.models import model_entry
        >>> official_shapes(model_entry("sdt_v2_digits").config)["head.bias"].shape
        torch.Size([10])
    """
    with torch.device("meta"):
        model = build_model(config)
    state = model.state_dict()
    return {official: state[ours] for ours, official in official_keys(model).items()}

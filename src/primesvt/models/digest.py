"""Digests of networks, which tell whether two have the same weights and configuration."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, nn

from primesvt.data.digest import add_tensor, json_bytes
from primesvt.models.families import FAMILIES
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["config_of", "model_digest"]


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """The stored config of a registry model; ``None`` for any other module."""
    if not isinstance(model, SpikingViT) or model.config.family not in FAMILIES:
        return None
    # A subclass may compute something else from the same config: it counts as foreign.
    known = type(model) is FAMILIES[model.config.family].model
    return model.config.to_dict() if known else None


def model_digest(model: nn.Module) -> str:
    """SHA-256 over the config (or the class) and every tensor of a model.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = model_digest(layer)
        >>> _ = nn.init.zeros_(layer.bias)
        >>> before == model_digest(layer)
        False
    """
    digest = hashlib.sha256()
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    # Time steps may be changed at any time, so they are kept apart from what a model is.
    settings = {k: v for k, v in (config_of(model) or {}).items() if k != "time_steps"}
    digest.update(json_bytes(settings or {"class": name}))
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(json_bytes({"name": key, "dtype": str(tensor.dtype)}))
            add_tensor(digest, tensor)
    return digest.hexdigest()

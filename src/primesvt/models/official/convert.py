"""Convert official state dicts to our models, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from primesvt.models.families import build_model
from primesvt.models.official.names import official_keys
from primesvt.models.official.recognise import recognise
from primesvt.models.provenance import Provenance
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["from_official", "to_official"]


def from_official(
    state_dict: Mapping[str, Tensor], *, family: str | None = None, **overrides: Any
) -> SpikingViT:
    """Build the model an official state dict belongs to, and load the weights.

    Family, widths, depths, ratios, classes and the distillation head are read off names and
    shapes. What leaves no trace there (time steps, head count, ...) comes from ``overrides`` or
    else from the nearest registered variant; ``model.loaded`` says which is which. Errors are
    those of ``recognise``: an unknown override is a ``TypeError``, all else a ``ValueError``.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits")
        >>> same = from_official(to_official(model))
        >>> bool((same.head.fc.weight == model.head.fc.weight).all())
        True
    """
    found = recognise(state_dict, family=family, overrides=overrides)
    model = build_model(found.config)
    model.load_state_dict({ours: found.state[key] for ours, key in official_keys(model).items()})
    model.loaded = found.loaded
    if found.entry.config.in_channels == found.config.in_channels:
        model.provenance = Provenance(data=found.entry.data)
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

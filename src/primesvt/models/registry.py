"""Models by name: sizes, data configs, published figures, bundled weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes

from primesvt.data.config import DataConfig, with_channels
from primesvt.models.config import ModelConfig
from primesvt.models.entry import ModelEntry
from primesvt.models.families import FAMILIES, build_model, family_of
from primesvt.models.nearest import nearest_entry
from primesvt.models.provenance import Provenance
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state_dict import load_state

__all__ = [
    "create_model",
    "data_config",
    "list_models",
    "listing",
    "model_entry",
    "nearest_data",
    "provenance_of",
]


def _entries() -> Mapping[str, ModelEntry]:
    """All registered models by name; a family that was registered later has its own among them."""
    return _entries_of(FAMILIES.names())


@cache
def _entries_of(families: tuple[str, ...]) -> Mapping[str, ModelEntry]:
    return {entry.name: entry for name in families for entry in FAMILIES[name].entries()}


def list_models(pattern: str = "*") -> list[str]:
    """Return the registered names that match a glob, in the order of the registry.

    Example:
        >>> list_models("*_55m*")
        ['sdt_v2_55m', 'sdt_v2_55m_kd']
    """
    return [name for name in _entries() if fnmatchcase(name, pattern)]


def model_entry(name: str) -> ModelEntry:
    """Return the registry entry of a name; an unknown one raises ``ValueError`` with the nearest.

    Example:
        >>> model_entry("sdt_v2_31m").published.top1
        77.2
    """
    entries = _entries()
    aliases = {alias: entry.name for entry in entries.values() for alias in entry.aliases}
    canonical = aliases.get(name, name)
    if canonical in entries:
        return entries[canonical]
    near = get_close_matches(str(name), [*entries, *aliases], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `primesvt models`"
    raise ValueError(f"unknown model {name!r}; {hint}")


def listing() -> list[dict[str, Any]]:
    """The rows of `primesvt models`: size, published accuracy and weights of every model.

    ``listing.json`` beside this file holds it of the models of the package, so that
    `primesvt models` need not build them.

    Example:
        >>> next(row for row in listing() if row["name"] == "sdt_v2_digits")["parameters"]
        116122
    """
    rows = []
    for entry in _entries().values():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_model(entry.config).parameters())
        rows.append(
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "family": entry.family,
                "parameters": parameters,
                "input_size": list(entry.data.input_size),
                "num_classes": entry.config.num_classes,
                "time_steps": entry.config.time_steps,
                "published": entry.published and asdict(entry.published),
                "bundled": entry.weights is not None,
            }
        )
    return rows


def create_model(name: str, *, pretrained: bool = False, **overrides: Any) -> SpikingViT:
    """Build a registered model; ``overrides`` are fields of its config.

    ``pretrained`` loads the weights in the package, where there are any: then only ``time_steps``
    may be overridden, anything else raises ``ValueError``. An unknown override raises
    ``TypeError`` with the allowed names.

    Example:
        >>> create_model("sdt_v2_digits", num_classes=4).head.fc.out_features
        4
    """
    entry = model_entry(name)
    config = type(entry.config).from_dict(entry.config.to_dict() | overrides)
    model = build_model(config)
    data = with_channels(entry.data, config.in_channels)
    model.provenance = Provenance(data=data, held_out=pretrained)
    if not pretrained:
        return model
    if entry.weights is None:
        bundled = [each.name for each in _entries().values() if each.weights]
        raise ValueError(
            f"{entry.name} has no weights in the package (only {', '.join(bundled)} has);"
            " give a downloaded checkpoint file instead (in Python: primesvt.models.from_official)"
        )
    for field in fields(config):
        asked, trained = getattr(config, field.name), getattr(entry.config, field.name)
        if asked != trained and field.name != "time_steps":
            raise ValueError(
                f"{entry.name} was trained with {field.name}={trained}, not {asked}; leave out"
                " pretrained, or the override"
            )
    load_state(model, _bundled(entry), source=f"the bundled file {entry.weights}")
    return model


def _bundled(entry: ModelEntry) -> dict[str, Any]:
    resource = files("primesvt").joinpath("weights", str(entry.weights))
    try:
        return tensors_from_bytes(resource.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the weights of {entry.name} cannot be read from the package ({error});"
            " install primesvt again"
        ) from error


def provenance_of(model: SpikingViT) -> Provenance:
    """Where a model's weights come from; for one made from a config, its nearest entry's data.

    Example:
        >>> provenance_of(create_model("sdt_v2_digits", pretrained=True)).held_out
        True
    """
    return model.provenance or Provenance(data=data_config(model.config))


def data_config(config: ModelConfig) -> DataConfig:
    """How images for a model of this config are prepared: as for its nearest registry entry.

    Example:
        >>> data_config(model_entry("sdt_v2_55m").config).input_size
        (3, 224, 224)
    """
    data = nearest_data(config)
    if data.input_size[0] != config.in_channels:
        raise ValueError(
            f"no registered {config.family} model reads {config.in_channels} channels, so how "
            "images are prepared is unknown; use primesvt.prune in Python with your own Dataset"
        )
    return data


def nearest_data(config: ModelConfig) -> DataConfig:
    """The data config of the nearest registry entry, even if it has other image channels."""
    settings = {name: value for name, value in config.to_dict().items() if name != "time_steps"}
    return nearest_entry(family_of(config.family).entries(), settings).data

"""Models by name: sizes, data configs, published figures, bundled weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes

from primesvt.models.config import ModelConfig
from primesvt.models.families import build_model
from primesvt.models.provenance import DataConfig, Provenance
from primesvt.models.sdt_v2 import SDTv2Config
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import load_state

__all__ = ["DataConfig", "ModelEntry", "Published", "create_model", "list_models", "model_entry"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published ImageNet-1K top-1 accuracy in percent, and where it was read.

    Official evaluation runs under ``autocast`` precision, so spikes may differ from float32.

    Example:
        >>> Published(top1=80.0, time_steps=4, source="README").autocast
        'float16'
    """

    top1: float
    time_steps: int
    source: str
    autocast: str = "float16"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One registered model; ``weights`` is a file in the package, or ``None``.

    Example:
        >>> model_entry("sdt_v2_55m").aliases
        ('metaspikformer_8_512',)
    """

    name: str
    config: ModelConfig
    data: DataConfig
    published: Published | None = None
    aliases: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def family(self) -> str:
        """The family's name."""
        return self.config.family


_IMAGENET = DataConfig(
    input_size=(3, 224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_ratio=0.875,
)
_SMALL = DataConfig(
    input_size=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)
)
_DIGITS = DataConfig(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))

# The 15M and 124M sizes have no figure in a source that could be checked.
_SIZES: dict[str, tuple[tuple[int, ...], str | None, Published | None, Published | None]] = {
    "15m": ((64, 128, 256, 360), None, None, None),
    "31m": (
        (96, 192, 384, 480),
        "metaspikformer_8_384",
        Published(top1=77.2, time_steps=4, source="secondary: tables of later papers"),
        None,
    ),
    "55m": (
        (128, 256, 512, 640),
        "metaspikformer_8_512",
        Published(top1=79.7, time_steps=4, source="secondary: tables of later papers"),
        Published(top1=80.0, time_steps=4, source="authors' README and abstract"),
    ),
    "124m": ((192, 384, 768, 960), "metaspikformer_8_768", None, None),
}


def _entries() -> Iterator[ModelEntry]:
    for size, (widths, alias, published, published_kd) in _SIZES.items():
        yield ModelEntry(
            name=f"sdt_v2_{size}",
            config=SDTv2Config(embed_dims=widths),
            data=_IMAGENET,
            published=published,
            aliases=(alias,) if alias else (),
        )
        yield ModelEntry(
            name=f"sdt_v2_{size}_kd",
            config=SDTv2Config(embed_dims=widths, distillation=True),
            data=_IMAGENET,
            published=published_kd,
        )
    yield ModelEntry(
        name="sdt_v2_small",
        config=SDTv2Config(
            embed_dims=(32, 64, 128, 160),
            num_classes=10,
            conv_depths=(1, 1, 1),
            depths=(2, 1),
            stem_kernel=3,
            strides=(1, 2, 1, 2, 1),
        ),
        data=_SMALL,
    )
    yield ModelEntry(
        name="sdt_v2_digits",
        config=SDTv2Config(
            in_channels=1,
            num_classes=10,
            time_steps=2,
            embed_dims=(16, 16, 32, 40),
            num_heads=4,
            conv_depths=(1, 1, 1),
            depths=(1, 1),
            stem_kernel=3,
            strides=(1, 1, 2, 1, 1),
        ),
        data=_DIGITS,
        weights="sdt_v2_digits.safetensors",
    )


_ENTRIES = {entry.name: entry for entry in _entries()}
_ALIASES = {alias: entry.name for entry in _ENTRIES.values() for alias in entry.aliases}


def list_models(pattern: str = "*") -> list[str]:
    """Return the registered names that match a glob, in the order of the registry.

    Example:
        >>> list_models("*_55m*")
        ['sdt_v2_55m', 'sdt_v2_55m_kd']
    """
    return [name for name in _ENTRIES if fnmatchcase(name, pattern)]


def model_entry(name: str) -> ModelEntry:
    """Return what is known of a model; an unknown name raises ``ValueError`` with the nearest.

    Example:
        >>> model_entry("sdt_v2_31m").published.top1
        77.2
    """
    canonical = _ALIASES.get(name, name)
    if canonical in _ENTRIES:
        return _ENTRIES[canonical]
    near = get_close_matches(str(name), [*_ENTRIES, *_ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `primesvt models`"
    raise ValueError(f"unknown model {name!r}; {hint}")


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
    model.provenance = Provenance(data=entry.data, held_out=pretrained)
    if not pretrained:
        return model
    _check_pretrained(entry, config)
    load_state(model, _bundled(entry), source=f"the bundled file {entry.weights}")
    return model


def _check_pretrained(entry: ModelEntry, config: ModelConfig) -> None:
    if entry.weights is None:
        bundled = [each.name for each in _ENTRIES.values() if each.weights]
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


def _bundled(entry: ModelEntry) -> dict[str, Any]:
    resource = files("primesvt").joinpath("weights", str(entry.weights))
    try:
        return tensors_from_bytes(resource.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the weights of {entry.name} cannot be read from the package ({error});"
            " install primesvt again"
        ) from error

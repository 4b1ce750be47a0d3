"""Models by name, file or folder, with what later stages must know of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primesvt.loading import load
from primesvt.models import (
    DataConfig,
    Loaded,
    ModelConfig,
    Provenance,
    SpikingViT,
    create_model,
    list_models,
    model_entry,
)
from primesvt.models.families import family_of
from primesvt.models.nearest import nearest_entry
from primesvt.models.overrides import check_names
from primesvt.models.statefile import SUFFIXES

__all__ = ["OpenedModel", "data_config", "open_model", "provenance_of"]


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model, and what is known of it."""

    model: SpikingViT

    @property
    def data(self) -> DataConfig:
        """How its images are prepared; ``ValueError`` where nobody knows."""
        return provenance_of(self.model).data

    @property
    def held_out(self) -> bool:
        """``primesvt train`` made it, so the images held out there were never trained on."""
        return provenance_of(self.model).held_out

    @property
    def loaded(self) -> Loaded | None:
        """Where the settings of an official checkpoint come from."""
        return self.model.loaded

    @property
    def num_classes(self) -> int:
        """How many classes the model predicts."""
        return self.model.config.num_classes

    def example(self) -> Tensor:
        """Two random samples of the model's input size, always the same.

        Images ``[2, C, H, W]``, or event frames ``[2, T, C, H, W]``.
        """
        config = self.model.config
        data = (self.model.provenance or Provenance(data=_nearest_data(config))).data
        steps = (self.model.time_steps,) if data.events else ()
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, *steps, config.in_channels, *data.input_size[1:], generator=generator)


def open_model(
    source: str | Path,
    *,
    time_steps: int | None = None,
    pretrained: bool = True,
    family: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> OpenedModel:
    """Open a registry name, an official checkpoint file, or a folder that PrimeSVT wrote.

    ``family`` and ``overrides`` are those of ``primesvt.load``. ``pretrained=False`` takes fresh
    weights where the package has none for a name, which is enough to look at a network's
    structure. Raises ``ValueError`` in one line for anything unusable.

    Example:
        >>> open_model("sdt_v2_digits", pretrained=False).num_classes
        10
    """
    if time_steps is not None and time_steps < 1:
        raise ValueError(f"time_steps is {time_steps}, but must be at least 1")
    settings = dict(overrides or {})
    with _mistakes_of_a_person():
        check_names(settings)
    if time_steps is not None and settings.setdefault("time_steps", time_steps) != time_steps:
        raise ValueError(
            f"time_steps is given twice, as {time_steps} and as {settings['time_steps']}"
        )
    model = _open(Path(source), family, settings, pretrained=pretrained)
    if not isinstance(model, SpikingViT):
        raise ValueError(f"{source} holds a model of your own; use primesvt.prune in Python for it")
    return OpenedModel(model=model.eval())


def _open(path: Path, family: str | None, settings: Mapping[str, Any], *, pretrained: bool) -> Any:
    if str(path) not in list_models() and (path.exists() or path.suffix in SUFFIXES):
        return load(path, family=family, quiet=True, **settings)
    entry = model_entry(str(path))
    if family not in (None, entry.family):
        raise ValueError(f"{entry.name} is of the family {entry.family}, not {family}")
    bundled = entry.weights is not None
    with _mistakes_of_a_person():
        return create_model(entry.name, pretrained=pretrained or bundled, **settings)


@contextmanager
def _mistakes_of_a_person() -> Iterator[None]:
    """An unknown setting is a mistake in a program (``TypeError``), unless a person typed it."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from error


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
    data = _nearest_data(config)
    if data.input_size[0] != config.in_channels:
        raise ValueError(
            f"no registered {config.family} model reads {config.in_channels} channels, so how "
            "images are prepared is unknown; use primesvt.prune in Python with your own Dataset"
        )
    return data


def _nearest_data(config: ModelConfig) -> DataConfig:
    settings = {name: value for name, value in config.to_dict().items() if name != "time_steps"}
    return nearest_entry(family_of(config.family).entries(), settings).data

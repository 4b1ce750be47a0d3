"""Models by name, file or folder; checkpoint files are read without running pickled code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from primesvt.artifact import load
from primesvt.models import (
    DataConfig,
    ModelConfig,
    Provenance,
    SpikingViT,
    create_model,
    from_official,
    list_models,
    model_entry,
)

__all__ = ["OpenedModel", "open_model", "read_state_dict"]

# Training scripts wrap the state dict; averaged weights come first, as published results use them.
WRAPPERS = ("model_ema", "state_dict_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model and what is known of it.

    ``data`` says how its images are prepared; ``held_out`` that ``primesvt train`` made it, so the
    images held out there were never trained on.
    """

    model: SpikingViT
    data: DataConfig
    held_out: bool

    @property
    def num_classes(self) -> int:
        """How many classes the model predicts."""
        return self.model.config.num_classes

    def example(self) -> Tensor:
        """Two random images of the model's input size, ``[2, C, H, W]``, always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, *self.data.input_size, generator=generator)


def open_model(
    source: str | Path, *, time_steps: int | None = None, pretrained: bool = True
) -> OpenedModel:
    """Open a registry name, an official checkpoint file, or a folder that PrimeSVT wrote.

    ``pretrained=False`` takes fresh weights where the package has none for a name, which is enough
    to look at a network's structure. Raises ``ValueError`` in one line for anything unusable.

    Example:
        >>> open_model("sdt_v2_digits", pretrained=False).num_classes
        10
    """
    if time_steps is not None and time_steps < 1:
        raise ValueError(f"time_steps is {time_steps}, but must be at least 1")
    opened = _open(source, pretrained=pretrained)
    if time_steps is not None:
        opened.model.time_steps = time_steps
    opened.model.eval()
    return opened


def _open(source: str | Path, *, pretrained: bool) -> OpenedModel:
    path = Path(source)
    if str(source) in list_models() or not (path.exists() or path.suffix in SUFFIXES):
        entry = model_entry(str(source))
        model = create_model(entry.name, pretrained=pretrained or entry.weights is not None)
    elif path.is_dir() or (path.parent / "config.json").is_file():
        model = load(path if path.is_dir() else path.parent)
    else:
        model = _official(path)
    if not isinstance(model, SpikingViT):
        raise ValueError(f"{path} holds a model of your own; use primesvt.prune in Python for it")
    made = provenance_of(model)
    return OpenedModel(model=model, data=made.data, held_out=made.held_out)


def _official(path: Path) -> SpikingViT:
    state = read_state_dict(path)
    try:
        return from_official(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def provenance_of(model: SpikingViT) -> Provenance:
    """Where a model's weights come from; for a downloaded checkpoint, its nearest entry's data.

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
    entries = [model_entry(name) for name in list_models()]
    alike = [
        entry.data
        for entry in entries
        if replace(entry.config, time_steps=config.time_steps) == config
    ]
    fitting = [
        entry.data
        for entry in entries
        if entry.family == config.family and entry.config.in_channels == config.in_channels
    ]
    if not alike and not fitting:
        raise ValueError(
            f"no registered {config.family} model reads {config.in_channels} channels, so how "
            "images are prepared is unknown; use primesvt.prune in Python with your own Dataset"
        )
    return (alike or fitting)[0]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.safetensors`` file or of what ``torch.save`` wrote.

    Only tensors and plain values are unpickled (``weights_only``). Raises ``ValueError`` where the
    file is cut short, is something else, or holds no state dict.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "wrapped.pth"
        ...     torch.save({"model": {"module.head.weight": torch.ones(2)}}, file)
        ...     read_state_dict(file)
        {'head.weight': tensor([1., 1.])}
    """
    path = Path(path)
    return {_plain(name): tensor for name, tensor in _unwrap(_read(path), path).items()}


SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"})


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"there is no checkpoint file {str(path)!r}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            raise ValueError(
                f"{path} holds Python objects beside tensors, which are not loaded; "
                "save its state dict alone, best as .safetensors"
            ) from error
        raise _unreadable(path) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> ValueError:
    size = path.stat().st_size if path.is_file() else 0
    return ValueError(
        f"cannot read the checkpoint {path} ({size:,} bytes): it is cut short or no checkpoint; "
        "copy or download it again"
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(2):
        wrapper = next((key for key in WRAPPERS if _holds(content, key)), None)
        content = content[wrapper] if wrapper else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(map(repr, list(content)[:4])) or "nothing"
        raise ValueError(f"{path} holds no state dict: found {keys}; expected one of {WRAPPERS}")
    return state


def _holds(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name

"""``primesvt.load``: a model from any file or folder that holds one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from primesvt.checkpoint.folder import load as load_folder
from primesvt.checkpoint.folder import model_folder
from primesvt.models import SpikingViT, from_official, list_models
from primesvt.models.nearest import agrees
from primesvt.models.official.read import read_state_file
from primesvt.models.overrides import check_names

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    into: nn.Module | None = None,
    family: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Any:
    """Load a model in evaluation mode: an official checkpoint, or a folder that PrimeSVT wrote.

    Family and sizes of an official checkpoint (``.pth``, ``.pth.tar``, ``.pt``, ``.bin``,
    ``.safetensors``) are inferred from its tensors; what leaves no trace there is taken from the
    nearest published variant, printed on stderr, and can be given by name. The report is kept as
    ``model.loaded``. No pickled code is run.

    Args:
        path: a checkpoint file, a run folder, or the model folder in it or its file.
        into: for a folder with a module of your own: a fresh, unpruned instance, which is cut as
            the plan says, filled and returned.
        family: the family of the checkpoint, where its tensors should not decide.
        quiet: print nothing.
        overrides: settings such as ``time_steps``, ``num_heads``, ``pooling_stat``, ``dvs_mode``,
            ``spike_mode``, ``img_size``, ``group_size``, ``spike_levels``, ``tau``; a saved model
            keeps all but its ``time_steps``.

    Raises:
        TypeError: an override with an unknown name.
        ValueError: a file that is damaged, holds other Python objects or fits no family, or an
            override that cannot be.

    Example:
        >>> import tempfile, torch
        >>> from primesvt.models import create_model, to_official
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "checkpoint-3.pth"
        ...     torch.save({"model": to_official(create_model("sdt_v2_digits"))}, file)
        ...     model = load(file, quiet=True, time_steps=1)
        >>> model.loaded.nearest, model.time_steps
        ('sdt_v2_digits', 1)
    """
    check_names(overrides)
    folder = model_folder(path)
    if folder is not None:
        return _saved(folder, into, family, overrides)
    if into is not None:
        raise ValueError(f"into= is for folders that PrimeSVT wrote, and {path} is none")
    model = _official(Path(path), family, overrides)
    if not quiet and model.loaded is not None:
        sys.stderr.write("\n  ".join(model.loaded.lines()) + "\n")
    return model


def _official(path: Path, family: str | None, overrides: Mapping[str, Any]) -> SpikingViT:
    if not path.exists() and str(path) in list_models():
        raise ValueError(f"{path} is a registered name, no file: use primesvt.create_model")
    file = read_state_file(path)
    try:
        model = from_official(file.state, family=family, **overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if model.loaded is not None:
        notes = (*file.notes, *model.loaded.notes)
        model.loaded = replace(model.loaded, source=str(path), notes=notes)
    return model.eval()


def _saved(
    folder: Path, into: nn.Module | None, family: str | None, overrides: Mapping[str, Any]
) -> Any:
    model = load_folder(folder, into=into)
    if not overrides and family is None:
        return model
    if not isinstance(model, SpikingViT):
        raise ValueError(f"{folder} holds a model of your own; it has no settings to override")
    own = {**model.config.to_dict(), "time_steps": model.time_steps}
    for name, value in {"family": family or own["family"], **overrides}.items():
        if name != "time_steps" and not (name in own and agrees(own[name], value)):
            raise ValueError(
                f"{name}={value!r} was given, but the model saved in {folder} has "
                f"{name}={own.get(name)!r}; load the original checkpoint with it instead"
            )
    steps = overrides.get("time_steps", model.time_steps)
    model.time_steps = replace(model.config, time_steps=steps).time_steps
    return model

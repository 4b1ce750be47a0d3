"""Networks of a user's own class, named by its import path on the command line."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from primesvt._files import read_json
from primesvt.channels.plan import Plan
from primesvt.checkpoint.folder import load, model_folder
from primesvt.models.official.read import KeyMap, read_state_file

__all__ = ["OwnModel", "built", "open_own_model"]

SAMPLES = 8  # random inputs to run a network on


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A network of the user's own class, in evaluation mode, and random inputs that it reads."""

    model: nn.Module
    inputs: tuple[Tensor, ...]


def built(path: str) -> nn.Module:
    """Import ``package.module:Class``, or a function, and call it without arguments.

    The folder that the command runs in comes first in the search for the module.

    Raises:
        ValueError: nothing there, it needs arguments, or it makes no network.

    Example:
        >>> built("torch.nn:Identity")
        Identity()
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--into is {path!r}, but must be package.module:Class")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        model = found()
    except Exception as error:  # it runs the user's code
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"--into {path} cannot be made ({type(error).__name__}: {line}); name a class or a "
            "function that can be imported here and needs no arguments"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have changed the list
            sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise ValueError(f"--into {path} makes a {type(model).__name__}, and no torch module")
    return model.eval()


def open_own_model(
    path: str,
    source: str | Path | None = None,
    input_size: str | None = None,
    *,
    container: str | None = None,
    key_map: KeyMap | str | Path | None = None,
) -> OwnModel:
    """Build a network from a user's class, and load weights from a checkpoint file or run folder.

    Args:
        path: ``package.module:Class``.
        source: a folder that ``prune`` wrote for it, or a checkpoint; fresh weights without.
        input_size: of one sample, such as ``3,32,32``; a folder knows it.
        container, key_map: of a checkpoint, as for ``primesvt.load``.

    Raises:
        ValueError: weights that do not fit, or an unknown size of its inputs.

    Example:
        >>> opened = open_own_model("torch.nn:Identity", input_size="3,8,8")
        >>> opened.inputs[0].shape
        torch.Size([8, 3, 8, 8])
    """
    model = built(path)
    folder = model_folder(source) if source else None
    if folder is not None:
        model = load(folder, into=model)
        plan = read_json(folder / "config.json")["plan"]
        if input_size is None and plan is not None:
            sizes = [list(given["shape"])[1:] for given in Plan.from_dict(plan).inputs]
            return OwnModel(model=model, inputs=_random(sizes))
    elif source:
        state = read_state_file(source, container=container, key_map=key_map).state
        try:
            model.load_state_dict(dict(state))
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise ValueError(f"{source} does not fit {path}: {line[:300]}") from error
    if input_size is None:
        raise ValueError(
            "how large the inputs of this network are is not known; give --input-size, the sizes "
            "of one sample, such as 3,32,32"
        )
    return OwnModel(model=model.eval(), inputs=_random([_sizes(input_size)]))


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--input-size is {text!r}, but must be whole numbers such as 3,32,32")
    return sizes


def _random(sizes: list[list[int]]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(SAMPLES, *each, generator=generator) for each in sizes)

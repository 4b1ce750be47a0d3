"""Save and load a model without pickle: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from primesvt._files import (
    parse_json,
    read_json,
    read_safetensors,
    save_safetensors,
    validated,
    write_json,
)
from primesvt.channels import ChannelGraph, remove_channels, trace
from primesvt.channels.plan import Plan, apply_plan, check_inputs, example_inputs
from primesvt.channels.widths import first_channels
from primesvt.models import Provenance, build_model
from primesvt.models.config import check_size
from primesvt.models.digest import config_of
from primesvt.models.forward import unwrap
from primesvt.models.state_dict import check_shapes
from primesvt.models.strip import match_state

__all__ = ["extra_state", "load", "model_folder", "read_tensors", "save_model"]

FORMAT = 1
Module = TypeVar("Module", bound=nn.Module)


def save_model(model: nn.Module, folder: str | Path, *, plan: Plan | None = None) -> Path:
    """Write a model's folder; each file is whole or not there, ``config.json`` comes last.

    Args:
        model: a registry model, pruned or not, or any module with a state dict of tensors.
        folder: made where it is missing.
        plan: how the model was cut; a foreign module cannot be loaded again without it.
    """
    folder, model = Path(folder), unwrap(model)
    extra = extra_state(model)
    state = {name: each for name, each in model.state_dict().items() if name not in extra}
    config = config_of(model)
    made = getattr(model, "provenance", None)
    content: dict[str, Any] = {
        "format": FORMAT,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": config,
        "time_steps": getattr(model, "time_steps", None) if config else None,
        "provenance": made.to_dict() if made else None,
        "inputs": list(plan.inputs) if plan else [],
        "plan": plan.to_dict() if plan and config is None else None,
    }
    if extra:
        content["extra_state"] = extra
    # Shared tensors are stored under each of their names.
    save_safetensors(folder / "model.safetensors", {k: v.clone() for k, v in state.items()})
    write_json(folder / "config.json", content)
    return folder


def extra_state(model: nn.Module) -> dict[str, Any]:
    """What modules keep in a state dict beside tensors (``get_extra_state``), by name.

    Raises ``ValueError`` for anything that JSON does not give back as it was: no pickle is written.

    Example:
        >>> extra_state(nn.Linear(2, 1))
        {}
    """
    found = {k: v for k, v in model.state_dict().items() if not isinstance(v, Tensor)}
    for name, value in found.items():
        try:
            same = parse_json(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ValueError(
                f"the state dict holds a {type(value).__name__} under {name!r}, no tensor and no "
                "plain value, so the model cannot be saved without pickle; let get_extra_state of "
                "that module give a tensor, or plain numbers, texts, lists and dicts"
            )
    return found


def load(folder: str | Path, into: Module | None = None) -> Any:
    """Load a model that ``train``, ``prune`` or ``apply`` has saved, in evaluation mode.

    A registry model is built on the meta device from the config of the *unpruned* model and shrunk
    to the shapes in the file by the same surgery as in pruning, so constants that depend on
    original widths stay original. Where the file shows that the lossless step took out unread
    parameters or a distillation head, they are taken out of the built model too.

    Args:
        folder: a run folder, or the model folder in it.
        into: for a module of your own: a fresh, unpruned instance, which is cut as the plan says,
            filled and returned.

    Raises:
        ValueError: no model there, a file that is cut short or does not fit, or a foreign module
            without ``into``.

    Example:
        >>> import tempfile
        >>> from primesvt.models import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_model(create_model("sdt_v2_digits"), folder)
        ...     load(folder).config.num_classes
        10
    """
    place = model_folder(folder)
    if place is None:
        raise _no_model(folder)
    folder = place
    content = _config(folder / "config.json")
    state = read_tensors(folder / "model.safetensors")
    extra = content.get("extra_state", {}) if content["config"] is None else {}
    if content["config"] is None:
        if into is None:
            raise ValueError(
                f"{folder} holds a {content['class']}, which primesvt cannot build; "
                "give a fresh instance: primesvt.load(folder, into=MyNet())"
            )
        if content["plan"] is not None:
            apply_plan(into, Plan.from_dict(content["plan"], source=str(folder / "config.json")))
        model: nn.Module = into
    else:
        if into is not None:
            raise ValueError(f"{folder} holds a registry model; load it without into=")
        model = _registered(content, state, folder)
    own = model.state_dict()
    tensors = {name: value for name, value in own.items() if name not in extra}
    check_shapes(tensors, state, source=str(folder / "model.safetensors"))
    if not extra.keys() <= own.keys():
        raise ValueError(f"{folder} holds extra states that the model given with into= has not")
    model.load_state_dict({**state, **extra}, assign=into is None)
    return model.eval()


def _registered(content: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path) -> nn.Module:
    try:
        with torch.device("meta"):
            model = build_model(content["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if content.get("provenance") is not None:
        model.provenance = Provenance.from_dict(content["provenance"])
    if content["time_steps"] is not None:
        check_size("time_steps", content["time_steps"])
        model.time_steps = int(content["time_steps"])
    match_state(model, state)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if any(name in state and state[name].shape != shape for name, shape in expected.items()):
        _shrink(model, state, content["inputs"], folder)
    return model


def _shrink(model: nn.Module, state: Mapping[str, Tensor], inputs: list[Any], folder: Path) -> None:
    """Cut every group of a meta model to the width that the stored tensors have."""
    if not inputs:
        raise ValueError(
            f"{folder / 'model.safetensors'} does not fit the config beside it; save it again"
        )
    try:
        graph = trace(model, example_inputs(inputs))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} does not fit together: {error}; save it again") from error
    stored = {}
    for group in graph:
        if group.status != "free" or group.kind == "heads":
            continue
        width = _stored_width(graph, group.name, state)
        if width is not None and 1 <= width < group.size:
            stored[group.name] = width
    remove_channels(model, graph, first_channels(graph, stored))


def _stored_width(graph: ChannelGraph, name: str, state: Mapping[str, Tensor]) -> int | None:
    """Channels of a group per head, from a stored tensor's axis that only the group's fill."""
    group = graph[name]
    for member in group.members:
        stored = state.get(member.tensor)
        if stored is not None and (graph.ids(group, member) >= 0).all():
            return stored.shape[member.axis] * group.size // graph.shape(member.tensor)[member.axis]
    return None


def model_folder(path: str | Path) -> Path | None:
    """The folder of a saved model that a path names: a run folder, that folder, or a file in it.

    ``None`` for any other file; a folder without a model raises ``ValueError``.
    """
    path = Path(path)
    if path.is_dir():
        for place in (path / "model", path):
            if (place / "config.json").is_file():
                return place
        raise _no_model(path)
    is_ours = path.name in ("model.safetensors", "config.json")
    return path.parent if is_ours and (path.parent / "config.json").is_file() else None


def _no_model(path: str | Path) -> ValueError:
    return ValueError(
        f"there is no saved model in {str(path)!r}: no config.json there or in its model folder; "
        "give a folder that primesvt train, prune or apply has written"
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON file: {error}; save the model again") from error
    made = content.get("format") if isinstance(content, dict) else None
    wanted = {"format", "class", "config", "time_steps", "inputs", "plan"}
    if made != FORMAT or not wanted <= set(content):
        raise ValueError(
            f"{path} is no model config of format {FORMAT} (found format {made}); "
            "save the model again, or update primesvt"
        )
    try:
        validated(_Config, content)
        check_inputs(content["inputs"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; save the model again") from error
    return dict(content)


_Config = TypedDict(
    "_Config",
    {
        "class": str,
        "config": dict[str, Any] | None,
        "time_steps": int | None,
        "provenance": NotRequired[dict[str, Any] | None],
        "extra_state": NotRequired[dict[str, Any]],
        "inputs": list[Any],
        "plan": dict[str, Any] | None,
    },
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_safetensors(path)[0]
    except OSError as error:
        raise ValueError(f"there is no {path}; save the model again") from error
    except ValueError as error:
        raise ValueError(
            f"{path} is cut short or damaged: {error}; copy it again, or save the model again"
        ) from error

"""Read the weights out of a checkpoint file, without running pickled code."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["SAFE_GLOBALS", "SUFFIXES", "KeyMap", "StateFile", "read_state_file"]

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
# Averaged weights come first, as published results use them.
AVERAGED = (
    "model_ema",
    "state_dict_ema",
    "ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "params_ema",
)
CONTAINERS = (
    *AVERAGED,
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "params",
    "module",
)
# What trainers and compilers put around a module, in front of names or inside them.
OUTER = ("module", "model", "net", "network")
INNER = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# Counters of profilers and of averaging, which are no weights.
COUNTERS = frozenset({"total_ops", "total_params", "n_averaged"})
NEEDLESS = COUNTERS | {"num_batches_tracked"}

# A pure path holds no more than its text, and one from Windows can be read anywhere.
_PATHS: dict[str, type[pathlib.PurePath]] = {
    "Path": pathlib.PurePath,
    "PosixPath": pathlib.PurePosixPath,
    "PurePath": pathlib.PurePath,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
    "WindowsPath": pathlib.PureWindowsPath,
}
# Python 3.13 pickles paths under pathlib._local.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, pure in _PATHS.items()
    ),
]


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """The weights of a checkpoint file, and notes on which of its contents they are."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


KeyMap = Mapping[str, str | None]
"""Patterns of tensor names, with the official name of each; ``None`` leaves a tensor out."""


def read_state_file(
    path: str | Path, *, container: str | None = None, key_map: KeyMap | str | Path | None = None
) -> StateFile:
    """Read the weights of a ``.safetensors`` file or of what ``torch.save`` wrote.

    A bare state dict, or one in a container such as ``state_dict`` or ``model_ema`` (averaged
    weights come first); what trainers put in front of names or into them is taken off, and so are
    counters of profilers. Beside tensors and plain values only ``argparse.Namespace`` and
    ``pathlib`` paths are unpickled.

    Args:
        path: the file.
        container: the key that holds the weights, where there are several.
        key_map: other names for the tensors, or a YAML or JSON file of them: ``*`` stands for any
            text, which the name on the right repeats at its own ``*``.

    Raises:
        ValueError: the file holds any other global (which is named), is cut short or holds no
            state dict, or its names do not fit the key map.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "wrapped.pth"
        ...     torch.save({"model": {"module.head.weight": torch.ones(2)}}, file)
        ...     read_state_file(file).state
        {'head.weight': tensor([1., 1.])}
    """
    path = Path(path)
    renames = {} if key_map is None else read_key_map(key_map)
    content, notes = _unwrapped(_read(path), path, container)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(repr, list(content)[:4])) or "nothing"
        raise ValueError(
            f"{path} holds no state dict: found {keys}; give the weights as they are, or under one "
            f"of {', '.join(CONTAINERS)}"
        )
    others = [str(name) for name in content if str(name) not in tensors]
    if others:
        notes = (*notes, f"left out of the weights, being no tensors: {', '.join(others)}")
    state, counters = _plain_names(tensors, path)
    if counters:
        notes = (*notes, f"left out of the weights, being counters: {', '.join(counters)}")
    if renames:
        state = _renamed(state, renames, path)
    return StateFile(state=state, notes=notes)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"there is no checkpoint file {str(path)!r}") from error
    except pickle.UnpicklingError as error:
        raise _not_unpickled(path, str(error), [str(each.message) for each in caught]) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path) from error


def _not_unpickled(path: Path, error: str, caught: list[str]) -> ValueError:
    """The error of a file that PyTorch refuses to unpickle, from its error and warnings."""
    if refused := re.search(r"GLOBAL (\S+)", error):
        return ValueError(
            f"{path} holds {refused[1]}, which is not unpickled: only tensors, plain values, "
            "argparse.Namespace and pathlib paths are; save its state dict alone, best as "
            ".safetensors"
        )
    protocol = re.search(r"Detected pickle protocol (\d+)", " ".join(caught))
    if protocol is None:
        return _unreadable(path)
    return ValueError(
        f"{path} was written with pickle_protocol={protocol[1]}, which PyTorch reads only by"
        " running the pickle; save it again without that argument, best as .safetensors"
    )


def _unreadable(path: Path) -> ValueError:
    size = path.stat().st_size if path.is_file() else 0
    return ValueError(
        f"cannot read the checkpoint {path} ({size:,} bytes): it is cut short or no checkpoint; "
        "copy or download it again"
    )


def _unwrapped(
    content: Any, path: Path, container: str | None
) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """The innermost container of weights in a checkpoint, and notes on it."""
    notes: tuple[str, ...] = ()
    if container is not None:
        chosen = content.get(container) if isinstance(content, Mapping) else None
        if not _holds_tensors(chosen):
            raise ValueError(
                f"{path} has no weights under {container!r}; it has them under "
                f"{', '.join(map(repr, _containers(content))) or 'no key'}"
            )
        content = chosen
    for _ in range(3):
        found = _containers(content)
        if not found:
            break
        content, notes = content[found[0]], (*notes, *_choice(content, found))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content, notes


def _containers(content: Any) -> list[str]:
    """The keys that hold weights, those to take first in front."""
    if not isinstance(content, Mapping):
        return []
    found = [key for key in CONTAINERS if _holds_tensors(content.get(key))]
    plain = [key for key in found if key not in AVERAGED]
    for key in [key for key in found if key in AVERAGED and plain]:
        # An average may hold the parameters alone: without running statistics no network works.
        if _names(content[plain[0]]) - _names(content[key]):
            found.remove(key)
            found.append(key)
    if found or _holds_tensors(content, deep=False):
        return found
    unknown = [key for key, value in content.items() if _holds_tensors(value, deep=False)]
    return [key for key in unknown if isinstance(key, str) and key not in NO_WEIGHTS]


NO_WEIGHTS = frozenset({"optimizer", "scheduler", "lr_scheduler", "scaler", "rng_state", "args"})


def _holds_tensors(value: Any, *, deep: bool = True) -> bool:
    """Whether a value is a mapping of names to tensors; ``deep``: or holds one."""
    if not isinstance(value, Mapping):
        return False
    inside = [each for name, each in value.items() if isinstance(name, str)]
    if any(isinstance(each, Tensor) for each in inside):
        return True
    return deep and any(_holds_tensors(each, deep=False) for each in inside)


def _names(content: Mapping[Any, Any]) -> set[str]:
    """The plain names of the tensors in a container, or in the one inside it."""
    inner = _containers(content)
    tensors = content[inner[0]] if inner else content
    names = (str(name) for name, each in tensors.items() if isinstance(each, Tensor))
    return {_plain(name) for name in names if name.rpartition(".")[2] not in NEEDLESS}


def _choice(content: Mapping[Any, Any], found: list[str]) -> tuple[str, ...]:
    """A note on the container that is taken, where the choice is not plain."""
    taken, *others = found
    what = "the averaged weights" if taken in AVERAGED else "the weights"
    if not others:
        return (f"{what} {taken!r} are taken",) if taken in AVERAGED else ()
    why = ""
    missing = _names(content[taken]) - _names(content[others[-1]])
    if taken not in AVERAGED and others[-1] in AVERAGED and missing:
        why = f" (which lacks {len(missing)} of the tensors)"
    return (
        f"{what} {taken!r} are taken, not {', '.join(map(repr, others))}{why}; --container"
        f" {others[0]} (in Python: container={others[0]!r}) takes those",
    )


def _plain_names(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by their names without what wrappers added, and the kinds of counters left out."""
    plain: dict[str, Tensor] = {}
    counters = dict.fromkeys(
        last for last in (name.rpartition(".")[2] for name in tensors) if last in COUNTERS
    )
    names = [name for name in tensors if name.rpartition(".")[2] not in COUNTERS]
    for name in names:
        short = _plain(name)
        if short in plain:
            raise ValueError(
                f"{path} holds {short!r} twice, once as {name!r}; save one state dict alone"
            )
        plain[short] = tensors[name]
    return plain, tuple(counters)


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part not in INNER]
    while len(parts) > 1 and parts[0] in OUTER:
        parts = parts[1:]
    return ".".join(parts)


def read_key_map(source: KeyMap | str | Path) -> dict[str, str | None]:
    """Check a map of tensor names, or read it from a YAML or JSON file.

    Example:
        >>> read_key_map({"layers.*.attn.*": "block.*.attn.*", "aux.*": None})
        {'layers.*.attn.*': 'block.*.attn.*', 'aux.*': None}
    """
    named, content = "the key map", source
    if isinstance(source, str | Path):
        named = f"the key map {source}"
        try:
            content = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {named}: {error}") from error
        except (yaml.YAMLError, RecursionError) as error:
            told = " ".join(str(error).split())
            raise ValueError(f"{named} is no YAML or JSON: {told}") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{named} holds no names; write lines such as 'layers.*.fc: block.*.fc'")
    for pattern, name in content.items():
        if not isinstance(pattern, str) or not isinstance(name, str | None):
            raise ValueError(f"{named} has {pattern!r}: {name!r}, but both must be names (or null)")
        if name is not None and pattern.count("*") != name.count("*"):
            raise ValueError(
                f"{named} maps {pattern!r} to {name!r}: both need as many *, as each on the right"
                " repeats what the one on the left stands for"
            )
    return dict(content)


def _renamed(
    state: Mapping[str, Tensor], renames: Mapping[str, str | None], path: Path
) -> dict[str, Tensor]:
    """Tensors under the names of a key map: the first pattern that fits a name counts."""
    compiled = {
        pattern: re.compile("(.*?)".join(map(re.escape, pattern.split("*")))) for pattern in renames
    }
    used, found = set(), dict[str, Tensor]()
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        matches = ((each, regex.fullmatch(name)) for each, regex in compiled.items())
        pattern, match = next(((p, m) for p, m in matches if m), (None, None))
        new: str | None = name
        if pattern is not None and match is not None:
            used.add(pattern)
            new = renames[pattern]
        if new is None:
            continue
        if match is not None:
            for part in match.groups():
                new = new.replace("*", part, 1)
        if new in found:
            raise ValueError(
                f"the key map gives the name {new!r} to both {origin[new]!r} and {name!r} of {path}"
            )
        found[new], origin[new] = tensor, name
    unused = [pattern for pattern in renames if pattern not in used]
    if unused:
        near = get_close_matches(unused[0], list(state), n=1, cutoff=0.0)
        raise ValueError(
            f"no tensor of {path} fits {unused[0]!r} of the key map; the nearest name is"
            f" {near[0]!r}"
        )
    return found

"""Read the weights out of a checkpoint file, without running pickled code."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primesvt._files import read_head, read_safetensors

__all__ = ["SAFE_GLOBALS", "SUFFIXES", "StateFile", "read_state_file"]

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
# Averaged weights come first, as published results use them.
CONTAINERS = ("model_ema", "state_dict_ema", "state_dict", "model")
AVERAGED = CONTAINERS[:2]
PREFIXES = ("module.", "_orig_mod.")

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


def read_state_file(path: str | Path) -> StateFile:
    """Read the weights of a ``.safetensors`` file or of what ``torch.save`` wrote.

    A bare state dict, or one under ``model_ema``, ``state_dict_ema``, ``state_dict`` or ``model``,
    in this order; the prefixes of wrapped models are taken off. Beside tensors and plain values
    only ``argparse.Namespace`` and ``pathlib`` paths are unpickled. Raises ``ValueError`` where
    the file holds any other global (which is named), is cut short or holds no state dict.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "wrapped.pth"
        ...     torch.save({"model": {"module.head.weight": torch.ones(2)}}, file)
        ...     read_state_file(file).state
        {'head.weight': tensor([1., 1.])}
    """
    path = Path(path)
    _check_file(path)
    content, notes = _unwrapped(_read(path), path)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    others = [name for name in content if str(name) not in tensors]
    if not tensors:
        keys = ", ".join(map(repr, list(content)[:4])) or "nothing"
        raise ValueError(f"{path} holds no state dict: found {keys}; expected one of {CONTAINERS}")
    if others:
        notes = (
            *notes,
            f"left out of the weights, being no tensors: {', '.join(map(str, others))}",
        )
    _check_tensors(tensors, path)
    return StateFile(state=_without_prefixes(tensors, path), notes=notes)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)[0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_unpickled(path, str(error), [str(each.message) for each in caught]) from error
    except Exception as error:  # a pickle that is cut short may end in any
        raise _unreadable(path) from error


MOST_UNPACKED = 64  # times the size of an archive; weights are stored as they are


def _check_file(path: Path) -> None:
    """Raise ``ValueError`` for what is no file, or for an archive that unpacks to much more."""
    try:
        head = read_head(path)
        if not head.startswith(b"PK") or path.suffix == ".safetensors":
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
    except FileNotFoundError as error:
        raise ValueError(f"there is no checkpoint file {str(path)!r}") from error
    except OSError as error:
        raise ValueError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        if isinstance(error, ValueError) and "no file" in str(error):
            raise
        raise _unreadable(path) from error
    size = path.stat().st_size
    if unpacked > MOST_UNPACKED * size:
        raise ValueError(
            f"{path} has {size:,} bytes and unpacks to {unpacked:,}, which weights never do; "
            "copy or download it again"
        )


MOST_REPEATED = 2**26  # values of a tensor that are stored once for many


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``ValueError`` for the first tensor that holds no plain values of its own."""
    for name, value in tensors.items():
        kind = (
            "on the meta device, without values"
            if value.is_meta
            else "quantized"
            if value.is_quantized
            else f"stored as {str(value.layout).removeprefix('torch.')}"
            if value.layout != torch.strided
            else ""
        )
        stored = 0 if kind else value.untyped_storage().nbytes() // max(1, value.element_size())
        if not kind and value.numel() > max(stored, MOST_REPEATED):
            kind = f"a view of {list(value.shape)} on {stored:,} values"
        if kind:
            raise ValueError(
                f"{path} holds {name!r}, which is {kind}; save the state dict of a model with "
                "dense weights in memory"
            )


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


def _unwrapped(content: Any, path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """The innermost container of weights in a checkpoint, and notes on it."""
    notes: tuple[str, ...] = ()
    for _ in range(2):
        outer = content if isinstance(content, Mapping) else {}
        found = [key for key in CONTAINERS if isinstance(outer.get(key), Mapping)]
        if found and found[0] in AVERAGED:
            passed_over = f", not {found[-1]!r}" if found[-1] not in AVERAGED else ""
            notes = (*notes, f"the averaged weights {found[0]!r} are taken{passed_over}")
        content = content[found[0]] if found else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content, notes


def _without_prefixes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = _plain(name)
        if short in plain:
            raise ValueError(
                f"{path} holds {short!r} twice, once as {name!r}; save one state dict alone"
            )
        plain[short] = tensor
    return plain


def _plain(name: str) -> str:
    while any(name.startswith(prefix) for prefix in PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name

"""Whole files or none: every file is written beside its target and then renamed onto it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

__all__ = [
    "check_writable",
    "safetensors_bytes",
    "save_safetensors",
    "write_bytes",
    "write_json",
    "write_text",
]


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content`` so that ``path`` is at every moment the old file or the new one.

    Missing parent folders are made. Raises ``ValueError`` where the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder) / "a.bin", b"spike").read_bytes()
        b'spike'
    """
    path = Path(path)
    with _clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), _default_mode())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


def write_text(path: str | Path, content: str) -> Path:
    """Write text as UTF-8, whole or not at all; see ``write_bytes``."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: str | Path, content: Mapping[str, Any] | list[Any]) -> Path:
    """Write indented JSON, whole or not at all; NaN and infinity raise ``ValueError``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "a.json", {"rate": 0.5}).read_text()
        '{\\n  "rate": 0.5\\n}\\n'
    """
    return write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def save_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors without pickle, whole or not at all; they are copied to dense CPU memory."""
    return write_bytes(path, safetensors_bytes(tensors, metadata=metadata))


def safetensors_bytes(
    tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The content of such a file; no two tensors may share memory."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return tensors_to_bytes(dense, metadata=dict(metadata or {}))


def check_writable(folder: str | Path) -> Path:
    """Make ``folder`` and try a write in it, so that a long run fails before it starts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(Path(folder) / "run").is_dir()
        True
    """
    folder = Path(folder)
    with _clear_errors(folder / "file"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a path into one line that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"cannot write to folder {str(path.parent)!r}: {reason}; "
            "choose a folder that you may write to"
        ) from error


def _default_mode() -> int:
    """The mode an ordinary new file would get; temporary files are private by default."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask

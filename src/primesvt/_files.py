"""Atomic writing of files, append-only logs, and locks of folders.

Every file is written beside its target and then renamed onto it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock, FileLock, Timeout, UnixFileLock

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FolderInUse",
    "JsonlLog",
    "check_writable",
    "contents",
    "file_lock",
    "folder_lock",
    "safetensors_bytes",
    "save_safetensors",
    "write_bytes",
    "write_json",
    "write_text",
]


RECIPE, PROBES, LATENCIES, PLAN, METRICS, MODEL = (
    "recipe.yaml",
    "sensitivity.jsonl",
    "latency.jsonl",
    "plan.json",
    "metrics.json",
    "model",
)


LOCK = ".lock"
PATIENCE = 0.5  # seconds in which a process that is about to end may let go


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


class JsonlLog:
    """An append-only file of lines, which are on disk before ``append`` returns.

    Args:
        path: need not be there yet.
        read_only: nothing is written, not even where a kill has cut the last line short.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JsonlLog(Path(folder, "log.jsonl"))
        ...     log.append('{"rate": 0.5}', '{"rate": 0.6}')
        ...     [line for _, line in log.lines()]
        [b'{"rate": 0.5}', b'{"rate": 0.6}']
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only

    def append(self, *lines: str) -> None:
        """Append lines."""
        if self.read_only or not lines:
            return
        with self.path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The numbers, from 1, and contents of all whole lines.

        A last line that a kill has cut short is left out, and taken off the file once the others
        have been read without an error.
        """
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        yield from enumerate(whole.splitlines(), start=1)
        if len(whole) < len(content) and not self.read_only:
            os.truncate(self.path, len(whole))


def save_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors without pickle, whole or not at all; they are copied to dense CPU memory."""
    return write_bytes(path, safetensors_bytes(tensors, metadata=metadata))


def safetensors_bytes(
    tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Serialise tensors as a safetensors file; no two may share memory."""
    from safetensors.torch import save as tensors_to_bytes  # the command line waits for no torch

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


class FolderInUse(ValueError):
    """Raised where another process is writing to a folder or file; says which and since when."""


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[Path]:
    """Keep other processes from writing to a folder for as long as the ``with`` block lasts.

    The lock belongs to the operating system, which takes it away from a process that dies, however
    it dies: the file ``.lock`` that a killed process leaves does not keep the next one out. A
    missing folder is made, and is gone again afterwards if nothing has come to lie in it.

    Raises:
        FolderInUse: another process has the lock; the line says who, and since when.
        ValueError: the folder cannot be written to.

    Example:
        >>> with tempfile.TemporaryDirectory() as place, folder_lock(Path(place, "run")) as run:
        ...     contents(run)
        []
    """
    folder = Path(folder)
    with _locked(folder / LOCK, folder):
        yield folder


@contextlib.contextmanager
def file_lock(path: str | Path) -> Iterator[Path]:
    """Keep other processes from writing one file, or one folder that is renamed into its place.

    As ``folder_lock``, with the file ``.NAME.lock`` beside it.
    """
    path = Path(path)
    with _locked(path.with_name(f".{path.name}{LOCK}"), path):
        yield path


def contents(folder: str | Path) -> list[str]:
    """Sorted names of the files and folders in a folder, without its lock; empty if it is missing.

    Example:
        >>> contents("no/such/folder")
        []
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)


@contextlib.contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    """Hold a lock file whose content says which process writes ``what``."""
    places = (lock.parent, *lock.parent.parents)
    made = [place for place in places if not place.exists()]  # the innermost first
    try:
        acquired = _acquired(lock, what)
        native = isinstance(acquired, UnixFileLock)  # without flock the file is filelock's own
        try:
            if native:
                lock.write_text(json.dumps(_myself()), encoding="utf-8")
            yield
        finally:
            # Whoever opened the file before it goes notices that it has no name any more.
            if native:
                lock.unlink(missing_ok=True)
            acquired.release()
    finally:
        with contextlib.suppress(OSError):  # something lies there
            for place in made:
                place.rmdir()


def _acquired(lock: Path, what: Path) -> BaseFileLock:
    """Acquire a lock; its folder is made again if another process removes it meanwhile."""
    made: BaseFileLock = FileLock(lock, mode=_default_mode())
    with _clear_errors(lock):
        for _ in range(3):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                try:
                    made.acquire(timeout=PATIENCE)
                except Timeout:
                    raise FolderInUse(_in_use(lock, what)) from None
                return made
    raise FolderInUse(_in_use(lock, what))


def _myself() -> dict[str, Any]:
    """A description of this process for the lock file: number, host, command and start."""
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.name == "__main__.py" else program.name
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "command": shlex.join([name or "python", *sys.argv[1:]]),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _in_use(lock: Path, what: Path) -> str:
    try:
        who = json.loads(lock.read_text(encoding="utf-8"))
        owner = f"process {who['process']} on {who['host']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        owner = "another process"
    return f"{what} is in use by {owner}; let it end first, or write to another place"


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn ``OSError`` of a path into a ``ValueError`` of one line that names the folder."""
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

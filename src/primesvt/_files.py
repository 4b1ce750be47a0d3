"""Atomic writing and guarded reading of files, append-only logs, and locks of folders.

Every file is written beside its target and then renamed onto it. What is read may come from anyone:
``read_json`` and its like give plain values of ordinary size, or raise one ``ValueError``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import yaml
from filelock import BaseFileLock, FileLock, Timeout, UnixFileLock
from typing_extensions import TypedDict  # pydantic does not take that of Python 3.11

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FolderInUse",
    "JsonlLog",
    "check_file",
    "check_place",
    "check_writable",
    "clear_temporaries",
    "contents",
    "file_lock",
    "folder_lock",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_head",
    "read_json",
    "read_safetensors",
    "read_text",
    "read_yaml",
    "safetensors_bytes",
    "safetensors_header",
    "save_safetensors",
    "validated",
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
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as ``write_bytes`` names them
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
    """An append-only file of JSON lines, which are on disk before ``append`` returns.

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
        self._looked_at = False  # the end of the file, for what a kill has left there

    def append(self, *lines: str) -> None:
        """Append lines, after what a kill has left of the last one was taken off."""
        if self.read_only or not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        if not self._looked_at and self._mend():
            text = f"\n{text}"
        self._looked_at = True
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The numbers, from 1, and contents of all whole lines.

        A last line is whole without its line break too; the beginning of one, which a kill has
        left, is passed over. Raises ``ValueError`` where it is the beginning of something else.
        """
        if not self.path.exists():
            return
        content = read_bytes(self.path)
        whole = content if self._unbroken(content) else content[: content.rfind(b"\n") + 1]
        yield from enumerate(whole.splitlines(), start=1)

    def _mend(self) -> bool:
        """Take a cut line off the end of the file; returns whether a line break is missing there.

        Through a link nothing is taken off, as the file may belong to something else.
        """
        if not self.path.exists():
            return False
        content = read_bytes(self.path)
        if self._unbroken(content):
            return True
        kept = content.rfind(b"\n") + 1
        if kept < len(content):
            if self.path.is_symlink():
                raise ValueError(
                    f"the last line of {self.path} is cut short, and the file is a link, through "
                    "which nothing is deleted; put the file itself there, or mend its last line"
                )
            os.truncate(self.path, kept)
        return False

    def _unbroken(self, content: bytes) -> bool:
        """Whether the last line is whole but for its line break; ``ValueError`` for no line."""
        tail = content[content.rfind(b"\n") + 1 :].rstrip(b"\0")  # as a crash may leave a file
        if not tail:
            return False
        if not tail.startswith(b"{"):
            number = content.count(b"\n") + 1
            raise ValueError(f"line {number} of {self.path} is not JSON; delete the line")
        try:
            parse_json(tail)
        except ValueError:
            return False
        return not content.endswith(b"\0")


def read_bytes(path: str | Path, *, most: int | None = None) -> bytes:
    """The content of an ordinary file.

    Raises ``ValueError`` for a folder, a device or a pipe, which might never end, and for a file of
    more than ``most`` bytes; ``OSError`` where there is none.

    Example:
        >>> read_bytes("/dev/zero")
        Traceback (most recent call last):
            ...
        ValueError: '/dev/zero' is a device, no file
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"{str(path)!r} has {size:,} bytes, and at most {most:,} are read")
        try:
            return file.read()
        except (MemoryError, OverflowError):
            raise ValueError(f"{str(path)!r} has {size:,} bytes, too many to be read") from None


def check_file(path: Path) -> Path:
    """Raise ``ValueError`` where a path is no ordinary file, ``OSError`` where it is nothing."""
    with _opened(path):
        return path


def read_head(path: str | Path, size: int = 8) -> bytes:
    """The first bytes of an ordinary file; see ``read_bytes``."""
    with _opened(path) as file:
        return file.read(size)


def read_text(path: str | Path) -> str:
    """The text of an ordinary UTF-8 file; see ``read_bytes``."""
    return read_bytes(path, most=MOST_TEXT).decode("utf-8")


def read_json(path: str | Path) -> Any:
    """Plain values of a JSON file; see ``read_bytes`` and ``parse_json``."""
    return parse_json(read_text(path))


def read_yaml(path: str | Path) -> Any:
    """Plain values of a YAML file; see ``read_bytes`` and ``parse_yaml``."""
    return parse_yaml(read_bytes(path, most=MOST_YAML).decode("utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text into plain values; NaN and infinity are errors.

    Raises ``ValueError`` in one line for anything else: also for numbers of more than 64 bits and
    for values that are nested too deeply.

    Example:
        >>> parse_json('{"rate": 1e999}')
        Traceback (most recent call last):
            ...
        ValueError: 1e999 is no finite number
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_bounded)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text; no tag builds an object.

    Raises ``ValueError`` in one line for anything else, for what ``parse_json`` refuses, and for
    aliases that repeat each other until no memory holds them.

    Example:
        >>> parse_yaml("rates: [0.1, 0.5]")
        {'rates': [0.1, 0.5]}
    """
    try:
        content = yaml.load(text, Loader=_Loader)
        if _expanded(content, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # PyYAML has some of its own for odd tags and dates
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return content


MOST_TEXT, MOST_YAML, MOST_VALUES, DEEPEST = 2**30, 2**20, 10**6, 100


class _Loader(yaml.SafeLoader):
    """Stops where values are nested too deeply, before that takes time."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _expanded(value: Any, known: dict[int, int]) -> int:
    """How many values a value holds, shared ones as often as they are met; checks numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int):
            _bounded(str(value) if abs(value) < 2**70 else "1" * 30)
        return 1
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES + 1  # of a value that holds itself
        parts = [*value, *value.values()] if isinstance(value, dict) else list(value)
        known[id(value)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(value)]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _bounded(text: str) -> int:
    if len(text) > 21 or abs(int(text)) >= 2**64:
        raise ValueError(f"{text[:20]}... is a number of more than 64 bits")
    return int(text)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """An ordinary file, opened for reading without waiting for a writer, as a pipe would."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
            kind = next((name for test, name in kinds.items() if test(mode)), "device")
            raise ValueError(f"{str(path)!r} is a {kind}, no file")
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        yield file


Kind = TypeVar("Kind")


def validated(kind: type[Kind], content: Any) -> Kind:
    """Content of a file as a dataclass, or another type, by its annotations.

    Raises ``ValueError`` in one line that names the fields that are missing, unknown or of another
    type.

    Example:
        >>> validated(dict[str, int], {"epochs": "many"})
        Traceback (most recent call last):
            ...
        ValueError: epochs: input should be a valid integer, unable to parse string as an integer
    """
    from pydantic import ValidationError

    try:
        return cast(Kind, _adapter(cast(Any, kind)).validate_python(content))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        parts = [_problem(each) for each in found[:3]]
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError("; ".join(parts) + more) from None
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"values that cannot be ({type(error).__name__})") from None


def _problem(each: Any) -> str:
    if each["type"] == "value_error":  # a sentence of ours
        return str(each["ctx"]["error"])
    place, said = ".".join(map(str, each["loc"])) or "all of it", str(each["msg"])
    return f"{place[:200]}: {said[:1].lower()}{said[1:]}"


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def safetensors_header(path: str | Path, *, whole: bool = True) -> dict[str, Any]:
    """The head of a safetensors file: dtype, shape and place of every tensor by its name.

    Raises ``ValueError`` in one line for another file, and for one that is not as long as it says
    where it must be ``whole``.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise ValueError("it has no head")
        header = parse_json(file.read(length).decode("utf-8"))
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    tensors = validated(dict[str, _StoredTensor], header)
    if any(count < 0 for each in tensors.values() for count in each["shape"]):
        raise ValueError("a tensor has a negative size")
    end = max((each["data_offsets"][1] for each in tensors.values()), default=0)
    if whole and end != size - 8 - length:
        raise ValueError("it is not as long as its head says")
    validated(dict[str, str] | None, metadata)  # type: ignore[arg-type]
    return {**header, "__metadata__": metadata or {}}


MOST_HEADER = 100_000_000  # bytes, the format's own limit


class _StoredTensor(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises ``ValueError`` in one line for a file that is damaged or none, ``OSError`` for none
    there.
    """
    from safetensors.torch import load as tensors_from_bytes  # the command line waits for no torch

    metadata = safetensors_header(path)["__metadata__"]
    content = read_bytes(path)
    try:
        return dict(sorted(tensors_from_bytes(content).items())), metadata
    except Exception as error:  # its own, and torch's for dtypes and sizes that it does not have
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"it is no safetensors file that PyTorch can read: {first}") from error


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


def check_place(path: str | Path) -> Path:
    """Raise ``ValueError`` where nothing can be written at a path; makes nothing there.

    Example:
        >>> check_place("/proc/self/run")
        Traceback (most recent call last):
            ...
        ValueError: cannot write to folder '/proc/self/run': ...; choose a folder ...
    """
    path = Path(path)
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if above == path and not path.is_dir():
        above = path.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=above):
            return path
    except OSError as error:
        what = "" if above in (path, path.parent) else f" in {str(above)!r}"
        raise ValueError(
            f"cannot write to folder {str(path)!r}: {error.strerror or error}{what}; "
            "choose a folder that you may write to"
        ) from error


class FolderInUse(ValueError):
    """Raised where another process is writing to a folder or file; says which and since when."""


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[Path]:
    """Keep other processes from writing to a folder for as long as the ``with`` block lasts.

    The lock belongs to the operating system, which takes it away from a process that dies, however
    it dies: the file ``.lock`` that a killed process leaves does not keep the next one out. Files
    that it had half written are deleted. A missing folder is made, and is gone again afterwards if
    nothing has come to lie in it.

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
        clear_temporaries(folder, folder / MODEL)
        yield folder


@contextlib.contextmanager
def file_lock(path: str | Path) -> Iterator[Path]:
    """Keep other processes from writing one file, or one folder that is renamed into its place.

    As ``folder_lock``, with the file ``.NAME.lock`` beside it.
    """
    path = Path(path)
    with _locked(path.with_name(f".{path.name}{LOCK}"), path):
        clear_temporaries(path.parent, names=(path.name, f".{path.name}", f"{path.name}.json"))
        yield path


def clear_temporaries(*folders: Path, names: tuple[str, ...] = ()) -> None:
    """Delete temporary files that killed processes left in folders, or only those of some files.

    Only for who has the lock: what another process is writing would go too.
    """
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            of = any(path.name.startswith(f".{name}.") for name in names)
            if TEMPORARY.fullmatch(path.name) and (of or not names):
                with contextlib.suppress(OSError):
                    path.unlink()


def contents(folder: str | Path) -> list[str]:
    """Sorted names of the files and folders in a folder; empty if it is missing.

    Without its lock, and without what a killed process has half written.

    Example:
        >>> contents("no/such/folder")
        []
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(name for name in names if name != LOCK and not TEMPORARY.fullmatch(name))


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
        who = read_json(lock)
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

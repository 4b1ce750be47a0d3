"""Files are whole or absent, and a folder that cannot be written to is named."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from primesvt._files import (
    FolderInUse,
    check_writable,
    contents,
    file_lock,
    folder_lock,
    save_safetensors,
    write_bytes,
    write_json,
    write_text,
)


def test_makes_missing_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b.txt", "5 \u00b5s")
    assert path.read_text(encoding="utf-8") == "5 \u00b5s"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


def test_new_file_has_the_mode_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    ours = write_bytes(tmp_path / "ours", b"")
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_nan_before_touching_the_file(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"accuracy": 0.5})
    with pytest.raises(ValueError):
        write_json(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}


def test_tensors_are_bitwise_the_same(tmp_path: Path) -> None:
    weight = torch.randn(3, 4).t()
    path = save_safetensors(tmp_path / "w.safetensors", {"weight": weight}, metadata={"a": "b"})
    assert torch.equal(load_file(path)["weight"], weight)


@pytest.mark.parametrize("use", [check_writable, lambda folder: write_text(folder / "a", "b")])
def test_a_folder_that_is_a_file_is_named(tmp_path: Path, use: object) -> None:
    blocker = tmp_path / "blocker"
    blocker.touch()
    assert callable(use)
    with pytest.raises(ValueError, match=r"cannot write to folder .*blocker") as caught:
        use(blocker / "run")
    assert "\n" not in str(caught.value)


def test_a_kill_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    size = 1_000_000
    program = (
        "import itertools, sys; from primesvt._files import write_bytes\n"
        f"for i in itertools.count(): write_bytes(sys.argv[1], bytes([i % 256]) * {size})"
    )
    for pause in (0.0, 0.003, 0.011):
        with subprocess.Popen([sys.executable, "-c", program, str(path)]) as process:
            _wait_for_change(path, process)
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert content == content[:1] * size


def _wait_for_change(path: Path, process: subprocess.Popen[bytes]) -> None:
    before = path.stat().st_ino if path.exists() else None
    while not path.exists() or path.stat().st_ino == before:
        assert process.poll() is None
        time.sleep(0.001)


HOLD = """
import os, sys, time
from primesvt._files import folder_lock
with folder_lock(sys.argv[1]):
    if "fork" in sys.argv and not os.fork():
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def _holder(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_hears_who_has_the_folder_and_since_when(tmp_path: Path) -> None:
    with _holder(tmp_path / "run") as process:
        with pytest.raises(FolderInUse) as caught, folder_lock(tmp_path / "run"):
            pass
        said = str(caught.value)
        assert "\n" not in said
        assert f"run is in use by process {process.pid} on " in said
        assert time.strftime(" since %Y-%m-%d ") in said and "run)" in said
        assert process.poll() is None
        assert (tmp_path / "run" / ".lock").is_file()  # the holder's, which the second left alone


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, words: tuple[str, ...]) -> None:
    with _holder(tmp_path / "run", *words) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run" / ".lock").is_file()
        assert contents(tmp_path / "run") == []
        with folder_lock(tmp_path / "run") as run:
            assert json.loads((run / ".lock").read_text())["process"] == os.getpid()
    assert (tmp_path / "run").is_dir() and not any((tmp_path / "run").iterdir())


def test_a_lock_leaves_nothing_behind_but_what_was_written(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a" / "empty"):
        assert contents(tmp_path / "a" / "empty") == []
    assert not (tmp_path / "a").exists()
    with pytest.raises(RuntimeError), folder_lock(tmp_path / "a" / "run") as run:
        write_text(run / "file", "")
        raise RuntimeError
    assert [file.name for file in run.iterdir()] == ["file"]
    with folder_lock(run), folder_lock(run / "finetuned"):  # one in the other is another folder
        assert contents(run) == ["file", "finetuned"]


def test_threads_and_files_are_locked_alike(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(FolderInUse), folder_lock(tmp_path):
        pass
    file, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    with file_lock(file), file_lock(other), pytest.raises(FolderInUse, match=r"a\.onnx is in use"):
        file_lock(file).__enter__()
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocker").touch()
    with pytest.raises(ValueError, match=r"cannot write to folder .*blocker"):
        folder_lock(tmp_path / "blocker" / "run").__enter__()

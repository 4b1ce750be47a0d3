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
    JsonlLog,
    check_writable,
    contents,
    file_lock,
    folder_lock,
    parse_json,
    parse_yaml,
    read_json,
    read_safetensors,
    read_yaml,
    save_safetensors,
    write_bytes,
    write_json,
    write_text,
)

from .forked import forked


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


KILLED = """
import os, signal, sys
from pathlib import Path
from primesvt import _files
def main(folder):
    _files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    with _files.folder_lock(folder):
        _files.write_text(Path(folder, "recipe.yaml"), "model: a")
"""


def test_what_a_kill_leaves_half_written_goes_with_the_next_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with forked(KILLED) as process:
        assert process(run) == -signal.SIGKILL
    assert list(run.glob(".recipe.yaml.*.tmp")) and contents(run) == []
    (run / ".mine.tmp").touch()  # not of ours
    with folder_lock(run):
        assert sorted(path.name for path in run.iterdir()) == [".lock", ".mine.tmp"]
    file = tmp_path / "a.onnx"
    for name in (".a.onnx.abcdefgh.tmp", "..a.onnx.unverified.abcdefgh.tmp", ".b.abcdefgh.tmp"):
        (tmp_path / name).touch()
    with file_lock(file):
        assert [path.name for path in tmp_path.glob(".*.tmp")] == [".b.abcdefgh.tmp"]


class TestLogs:
    """Lines are appended; nothing whole is ever taken away."""

    def test_a_last_line_without_its_break_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        path.write_text('{"a": 1}')
        log = JsonlLog(path)
        assert [line for _, line in log.lines()] == [b'{"a": 1}']
        assert path.read_text() == '{"a": 1}'  # reading writes nothing
        log.append('{"b": 2}')
        assert path.read_text() == '{"a": 1}\n{"b": 2}\n'

    @pytest.mark.parametrize("cut", [b'{"b": [1, ', b'{"b": 2}\0\0', b"\0\0\0"])
    def test_a_line_that_a_kill_has_cut_is_replaced(self, tmp_path: Path, cut: bytes) -> None:
        path = tmp_path / "log.jsonl"
        path.write_bytes(b'{"a": 1}\n' + cut)
        log = JsonlLog(path)
        assert [number for number, _ in log.lines()] == [1]
        log.append('{"c": 3}')
        assert path.read_text() == '{"a": 1}\n{"c": 3}\n'

    def test_another_text_is_refused_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        path.write_text("my notes, all in one line")
        for use in (lambda log: list(log.lines()), lambda log: log.append("{}")):
            with pytest.raises(ValueError, match=r"line 1 of .* is not JSON"):
                use(JsonlLog(path))
        assert path.read_text() == "my notes, all in one line"

    def test_nothing_is_cut_off_through_a_link(self, tmp_path: Path) -> None:
        there, link = tmp_path / "there.jsonl", tmp_path / "log.jsonl"
        there.write_text('{"a": 1}\n{"b": ')
        link.symlink_to(there)
        with pytest.raises(ValueError, match="is a link"):
            JsonlLog(link).append('{"c": 3}')
        assert there.read_text() == '{"a": 1}\n{"b": '


class TestReading:
    """Whatever lies there, there are plain values of ordinary size, or one line."""

    @pytest.mark.parametrize("kind", ["device", "pipe", "folder", "huge"])
    def test_what_is_no_ordinary_file(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "a.json"
        if kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            with path.open("wb") as file:
                file.truncate(1 << 42)
        for read in (read_json, read_yaml):
            with pytest.raises(ValueError, match=r"no file|at most") as caught:
                read(path)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[" * 100_000, "nested too deeply"),
            ("9" * 5000, "more than 64 bits"),
            ("-" + "9" * 30, "more than 64 bits"),
            ("[1e999]", "no finite number"),
            ("NaN", "no finite number"),
            ("{", "Expecting"),
        ],
    )
    def test_json_of_another_kind(self, text: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            parse_json(text)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
                + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
                "aliases",
            ),
            ("a: &a [*a]", "aliases"),
            ("[" * 5000, "nested too deeply"),
            ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
            ("a: !!timestamp x", "AttributeError|NoneType|match"),
            ("a: 2024-13-45", "month"),
            ("a: " + "9" * 400, "64 bits"),
        ],
    )
    def test_yaml_of_another_kind_takes_no_time(self, text: str, said: str) -> None:
        begin = time.monotonic()
        with pytest.raises(ValueError, match=said) as caught:
            parse_yaml(text)
        assert "\n" not in str(caught.value) and time.monotonic() - begin < 5

    def test_ordinary_aliases_are_read(self) -> None:
        assert parse_yaml("a: &a [0.1, 0.5]\nb: *a") == {"a": [0.1, 0.5], "b": [0.1, 0.5]}

    def test_heads_that_lie(self, tmp_path: Path) -> None:
        path = save_safetensors(tmp_path / "w.safetensors", {"w": torch.ones(3)})
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        for content in (
            whole[:5],
            whole[:-1],
            whole + b"x",
            (2**62).to_bytes(8, "little") + whole[8:],
            whole.replace(b"[3]", b"[4]"),
            whole.replace(b'"F32"', b'"Q32"'),
            whole[:8] + b"[" * length + whole[8 + length :],
        ):
            path.write_bytes(content)
            with pytest.raises(ValueError) as caught:
                read_safetensors(path)
            assert "\n" not in str(caught.value)

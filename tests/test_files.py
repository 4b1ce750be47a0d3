"""Files are whole or absent, and a folder that cannot be written to is named."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from primesvt._files import check_writable, save_safetensors, write_bytes, write_json, write_text


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

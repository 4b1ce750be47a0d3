"""How commands end: one process a folder, what signals leave, and faults of the tool itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from primesvt._files import folder_lock
from primesvt.cli import app

from ..bars import write_bars

QUICK = (
    "--include",
    "blocks.block3_0.mlp.fc1",
    "--rates",
    "0.25",
    "0.5",
    "--preset",
    "paper",
    "--no-verify",
)
LIMIT = ("--max-accuracy-drop", "10")


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    return str(write_bars(tmp_path_factory.mktemp("data") / "bars"))


@pytest.fixture
def prune_words(bars):
    """A run of a few seconds."""
    return ("prune", "sdt_v2_digits", "--data", bars, *QUICK, *LIMIT, "--out", "run")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextmanager
def _started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "primesvt", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        yield process
        process.kill()


def _until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if done():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came so far")


def _named() -> bool:
    lock = Path("run/.lock")
    return lock.is_file() and bool(lock.read_text())


def test_two_processes_in_one_folder_and_one_that_was_killed(primesvt, prune_words):
    with _started(*prune_words) as first:
        _until(_named, first)
        first.send_signal(signal.SIGSTOP)  # so that it is still there, however quick it is
        second = primesvt(*prune_words)
        assert (second.code, second.out, second.err.count("\n")) == (75, "", 1)
        assert f"run is in use by process {first.pid} on " in second.err
        assert re.search(r" since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(primesvt prune", second.err)
        first.kill()
        first.wait()
    assert Path("run/.lock").exists()
    assert primesvt(*prune_words).code == 0  # a lock of a dead process is no lock
    assert not Path("run/.lock").exists()


def test_sigterm_keeps_what_was_measured(primesvt, prune_words):
    probes = Path("run/sensitivity.jsonl")
    with _started(*prune_words) as process:
        _until(lambda: probes.is_file() and probes.read_text().count("\n") >= 1, process)
        process.terminate()
        out, err = process.communicate()
    assert (process.returncode, out) == (143, "")
    assert "terminated; the same command goes on where it was stopped" in err
    assert "Traceback" not in err and not Path("run/.lock").exists()
    kept = probes.read_text()
    assert primesvt(*prune_words).code == 0 and probes.read_text().startswith(kept)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_while_the_command_is_still_being_imported(number, code, word):
    script = f"""
import os, sys
class Sends:
    def find_spec(self, name, *_):
        if name == "primesvt.cli.apply":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Sends())
from primesvt.cli import main
sys.exit(main(["models"]))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (code, "")
    assert found.stderr == f"primesvt: {word}; nothing was written\n"


@pytest.fixture(scope="module")
def _run(tmp_path_factory, bars):
    place = tmp_path_factory.mktemp("pruned") / "run"
    words = ["prune", "sdt_v2_digits", "--data", bars, *QUICK, *LIMIT, "--out", str(place)]
    assert app.run(words) == 0
    return place


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("new", ["prune", "sdt_v2_digits", *LIMIT, "--out", "new"]),
        ("new", ["apply", "RUN", "sdt_v2_digits", "--out", "new"]),
        ("new", ["finetune", "RUN", "--epochs", "1", "--batch-size", "16", "--out", "new"]),
        ("RUN", ["report", "RUN"]),
    ],
)
def test_every_command_that_writes_a_folder_waits_for_nobody(primesvt, _run, folder, words):
    words = [word.replace("RUN", str(_run)) for word in words]
    with folder_lock(folder.replace("RUN", str(_run))) as held:
        before = sorted(held.rglob("*"))
        finished = primesvt(*words)
        assert (finished.code, finished.err.count("\n")) == (75, 1)
        assert f"is in use by process {os.getpid()} on " in finished.err
        assert sorted(held.rglob("*")) == before
    assert not Path("new").exists()


def test_an_export_and_a_page_are_written_by_one_process(primesvt, _run, monkeypatch):
    from primesvt import _files

    for name, words in (
        ("model.onnx", ["export", str(_run), "--out", "model.onnx"]),
        ("hub", ["export", str(_run), "--format", "hub", "--out", "hub"]),
        ("page.html", ["report", str(_run), "--out", "page.html"]),
        ("comparison.html", ["report", str(_run), str(_run)]),
    ):
        with _files.file_lock(name):
            finished = primesvt(*words)
            assert finished.code == 75 and f"{name} is in use by process" in finished.err
        assert list(Path().iterdir()) == []


def test_a_fine_tuning_ends_well_where_the_page_cannot_be_written(primesvt, _run):
    page = (_run / "report.html").read_bytes()
    with folder_lock(_run):
        finished = primesvt("finetune", str(_run), "--epochs", "1", "--batch-size", "16")
    assert finished.code == 0 and "The report was not made anew" in finished.out
    assert (_run / "report.html").read_bytes() == page


def test_a_folder_is_compared_again_under_the_lock(primesvt, _run, prune_words, monkeypatch):
    """What another process has written since the first look counts."""
    import primesvt as package
    from primesvt import _files
    from primesvt import distributed as processes

    def late(folder):
        Path(folder).mkdir()
        Path(folder, "recipe.yaml").write_text("model: another\n")
        return _files.folder_lock(folder)

    monkeypatch.setattr(processes, "folder_lock", late)
    finished = primesvt(*prune_words)
    assert finished.code == 1 and "holds a run of another recipe" in finished.err
    assert sorted(path.name for path in Path("run").iterdir()) == ["recipe.yaml"]

    def filled(folder):
        Path(folder).mkdir()
        Path(folder, "file").touch()
        return _files.folder_lock(folder)

    monkeypatch.setattr(processes, "folder_lock", filled)
    with pytest.raises(ValueError, match="holds something else"):
        package.finetune(_run, recipe={"epochs": 1, "batch_size": 16}, out="tuned")
    assert sorted(path.name for path in Path("tuned").iterdir()) == ["file"]


def test_a_lock_that_a_killed_process_left_makes_no_folder_used(primesvt, _run, prune_words):
    for name in ("new", "tuned", "small"):
        Path(name).mkdir()
        Path(name, ".lock").write_text("")
    assert primesvt(*prune_words[:-1], "new").code == 0
    tune = ("finetune", str(_run), "--epochs", "1", "--batch-size", "16", "--out", "tuned")
    assert primesvt(*tune).code == 0
    assert primesvt("apply", str(_run), "sdt_v2_digits", "--out", "small").code == 0
    assert not list(Path().rglob("*.lock"))


class TestSignalsAndFaults:
    """In this process: a command that meets something."""

    @pytest.fixture(autouse=True)
    def _place(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @pytest.mark.parametrize(
        ("number", "code", "word"),
        [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    )
    def test_a_signal_ends_in_one_line(self, primesvt, monkeypatch, number, code, word):
        def run(*_):
            os.kill(os.getpid(), number)
            time.sleep(5)

        before = signal.getsignal(number)
        monkeypatch.setattr(app.Models, "run", run)
        finished = primesvt("models")
        assert (finished.code, finished.err) == (code, f"primesvt: {word}; nothing was written\n")
        assert signal.getsignal(number) == before

    def test_a_fault_is_one_line_and_a_file(self, primesvt, monkeypatch, tmp_path):
        def run(*_):
            raise RuntimeError("odd shapes\nand more")

        monkeypatch.setattr(app.Models, "run", run)
        finished = primesvt("models", "--json")
        assert (finished.code, finished.out, finished.err.count("\n")) == (70, "", 1)
        assert "a fault of primesvt itself, RuntimeError: odd shapes; " in finished.err
        path = Path(finished.err.split()[-1])
        assert path.parent == tmp_path and path.name.startswith("primesvt-fault-")
        told = path.read_text()
        assert "command: primesvt models --json\n" in told and "and more" in told
        assert "Traceback (most recent call last)" in told and "torch 2." in told

    def test_a_fault_that_cannot_be_written_down_is_still_one_line(self, primesvt, monkeypatch):
        def run(*_):
            raise RuntimeError

        monkeypatch.setattr(app.Models, "run", run)
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        finished = primesvt("models")
        assert (finished.code, finished.err.count("\n")) == (70, 1)
        assert "itself, RuntimeError; no file could be written" in finished.err


def test_every_code_is_in_the_help(primesvt):
    text = primesvt("--help").out
    codes = (app.OK, app.ERROR, 2, app.LIMITS_NOT_MET, app.FAULT, app.IN_USE)
    for code in (*codes, app.INTERRUPTED, app.TERMINATED):
        assert re.search(rf"^ +{code}  \w", text, re.MULTILINE)
    assert (app.FAULT, app.IN_USE, app.INTERRUPTED, app.TERMINATED) == (70, 75, 130, 143)

"""A fine-tuning is killed with SIGKILL at several moments, and ends as if nothing had been."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from primesvt import finetune
from primesvt.training.snapshot import Snapshot

from ...forked import forked
from ...same_files import assert_same_files

RECIPE = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.005,
    "augmentation": {"shift": 1, "rotate": 10.0},
}

CHILD = """
import json, os, signal
from primesvt import _files, finetune
from primesvt.training import folder
from primesvt.training import loop
import torch

torch.optim.AdamW([torch.zeros(1)])  # imports more than a second of torch, once

def dies(name, real, *, first=False, done=[]):
    def called(*args, **options):
        found = None if first else real(*args, **options)
        done.append(name)
        if name == moment and done.count(name) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options) if first else found
    return called

loop.TrainingLoop._update = dies("step", loop.TrainingLoop._update)
folder.TrainingFolder.save = dies("saved", folder.TrainingFolder.save)
_files.os.fsync = dies("half a file", _files.os.fsync, first=True)
folder.write_json = dies("record", folder.write_json)

def main(run, out, recipe, moment_, count_):
    global moment, count
    moment, count = moment_, int(count_)
    finetune(run, out=out, recipe=json.loads(recipe), save_every=0)
"""

# In the first epoch, while a state of the second is written, after a step, and at the end.
MOMENTS = [("saved", 3), ("half a file", 5), ("step", 3), ("record", 1)]


Child = Callable[..., int]


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """Fine-tune in a process of its own, which kills itself at the moment; its exit code."""
    with forked(CHILD) as start:

        def tune(run: Path, out: Path, moment: str = "never", count: int = 1) -> int:
            code = start(run, out, json.dumps(RECIPE), moment, count)
            assert code in (0, -signal.SIGKILL), start.said()
            return code

        yield tune


@pytest.fixture(scope="module")
def whole(_run: Path, child: Child, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert child(_run, out) == 0
    return out


def where(out: Path) -> tuple[int, int]:
    """Epochs and steps that the saved state has behind it."""
    facts = Snapshot.load(out / "state.safetensors").facts
    return len(facts["losses"]), facts["step"]


def test_killed_again_and_again(_run: Path, child: Child, whole: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    for moment in MOMENTS:
        assert child(_run, out, *moment) == -signal.SIGKILL, moment
        assert (out / "record.json").exists() == (moment[0] == "record")
        seen.append(where(out))
    assert seen == [(0, 2), (1, 1), (1, 3), (2, 0)]

    finetune(_run, out=out, recipe=RECIPE)
    names = ("model/model.safetensors", "model/config.json", "plan.json", "recipe.yaml")
    assert_same_files(out, whole, names)
    records = [json.loads((place / "record.json").read_text()) for place in (out, whole)]
    for record in records:
        del record["seconds"]
    assert records[0] == records[1]


def test_the_state_goes_when_the_record_is_there(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        "model", "plan.json", "recipe.yaml", "record.json",
    }  # fmt: skip


def test_a_finished_one_is_returned(_run: Path, whole: Path, monkeypatch) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    monkeypatch.setattr("primesvt.training.finetuning.FinetuneLoop.run", None)
    found = finetune(_run, out=whole, recipe=RECIPE)
    assert found.record.to_dict() == finetune(_run, out=whole, recipe=RECIPE).record.to_dict()
    assert json.loads((whole / "record.json").read_text())["loss"] == list(found.record.loss)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.fixture
def stopped(_run: Path, tmp_path: Path) -> Path:
    """Interrupted after the first step."""
    out = tmp_path / "stopped"

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fine-tuning", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(_run, out=out, recipe=RECIPE, save_every=0, progress=interrupt)
    assert where(out) == (0, 1)
    return out


def test_another_question_is_refused(_run: Path, whole: Path, stopped: Path) -> None:
    for out in (whole, stopped):
        with pytest.raises(ValueError, match=r"recipe\.epochs is 2 there and 3 here; choose"):
            finetune(_run, out=out, recipe=RECIPE | {"epochs": 3})
        with pytest.raises(ValueError, match=r"teacher is '\w+' there and None here"):
            finetune(_run, out=out, recipe=RECIPE | {"distillation": 0})
    (stopped / "state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="delete it to start anew"):
        finetune(_run, out=stopped, recipe=RECIPE)


def test_nothing_saved_is_nothing_to_lose(_run: Path, stopped: Path) -> None:
    (stopped / "state.safetensors").unlink()
    finetune(_run, out=stopped, recipe=RECIPE | {"epochs": 1})
    assert yaml.safe_load((stopped / "recipe.yaml").read_text())["epochs"] == 1


def test_a_folder_of_something_else_is_refused(_run: Path, tmp_path: Path) -> None:
    shutil.copytree(_run / "model", tmp_path / "model")
    (tmp_path / "file").touch()
    shutil.copytree(_run, tmp_path / "run")
    for name, holds in (
        ("model", r"holds something else \(config\.json\); choose a new or empty folder"),
        ("run", r"holds something else \(metrics\.json\); choose a new or empty folder"),
        ("file", "is a file; choose a folder"),
    ):
        with pytest.raises(ValueError, match=holds):
            finetune(_run, out=tmp_path / name, recipe=RECIPE)

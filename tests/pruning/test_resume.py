"""A run is killed with SIGKILL at several moments, and goes on each time as if nothing had been."""

from __future__ import annotations

import json
import signal

import pytest

from primesvt.pruning.variants import TOGETHER

from ..forked import forked
from ..same_files import assert_same_files

CHILD = """
import dataclasses, json, os, signal
import torch
from torch.utils.data import Subset
torch.set_num_threads(1)
from primesvt.evaluation import evaluator as evaluation
from primesvt.pruning import probe_table as probes
from primesvt.pruning import pipeline as pruning
from primesvt.pruning import result
from primesvt.config import Constraints
from primesvt.data import load_data
from primesvt.models import create_model

whole = load_data("digits")
data = dataclasses.replace(
    whole,
    calibration=Subset(whole.calibration, range(32)),
    selection=Subset(whole.selection, range(40)),
    test=Subset(whole.test, range(20)),
)
model = create_model("sdt_v2_digits", pretrained=True)

def die_at(name):
    global left
    if name == moment:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def outcomes(together, *args, stage, real=evaluation._outcomes, **options):
    with open(log, "a") as file:
        file.write((stage + chr(10)) * len(together.networks))
    found = real(together, *args, stage=stage, **options)
    die_at("measured")
    return found

def append(self, *lines, real=probes.ProbeTable._append):
    if moment == "half a line" and left == 1:
        *before, last = lines  # written together, the last one in part
        with self._log.path.open("ab") as file:
            file.write("".join(line + chr(10) for line in before).encode())
            file.write(last[: len(last) // 2].encode())
    die_at("half a line")
    real(self, *lines)
    die_at("line")

def save_model(*args, real=result.save_model, **options):
    die_at("plan")
    real(*args, **options)
    die_at("model")

evaluation._outcomes, probes.ProbeTable._append, result.save_model = outcomes, append, save_model

def main(folder, log_, moment_, count, method):
    global log, moment, left
    log, moment, left = log_, moment_, int(count)
    pruning.prune(
        model,
        data=data,
        constraints=Constraints(max_accuracy_drop=8, min_memory_saving=None),
        include=["*.block4_0.mlp.fc1", "*.conv2a.conv1", "*.conv1b.conv1"],
        rates=(0.3, 0.6, 0.9),
        verify=False,
        out=folder,
        **json.loads(method),
    )
"""

PAPER = {
    "policy": "prime",
    "importance": "l2",
    "recovery": "none",
    "confirm": False,
    "lossless": False,
    "gate": "point",
    "exact": True,
}
METHODS = {"paper": PAPER, "best": {"gate": "point"}}

# The first probe; several whose lines are written together; a network alone; then the end.
MOMENTS = [("line", 2), ("half a line", 2), ("measured", 2)]
ENDS = [("plan", 1), ("model", 1)]


@pytest.fixture(scope="module")
def child():
    """Prune in a process of its own, which kills itself at the moment; its exit code."""
    with forked(CHILD) as start:

        def run(folder, log, method, moment="never", count=1):
            code = start(folder, log, moment, count, json.dumps(METHODS[method]))
            assert code in (0, -signal.SIGKILL), start.said()
            return code

        yield run


def rows(folder):
    lines = (folder / "sensitivity.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def known_by(row):
    return row["kind"] == "distance", tuple(sorted(row.get("cuts", {}).items()))


@pytest.fixture(scope="module", params=METHODS)
def whole(request, child, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert child(folder, folder.parent / "log", request.param) == 0
    return folder, request.param


def test_killed_again_and_again(whole, child, tmp_path):
    whole, method = whole
    folder, log = tmp_path / "run", tmp_path / "log"
    log.touch()
    for moment in MOMENTS + ENDS if method == "best" else [*MOMENTS[1:2], *ENDS[:1]]:
        assert child(folder, log, method, *moment) == -signal.SIGKILL, moment
        assert not (folder / "metrics.json").exists()
    assert child(folder, log, method) == 0

    names = ("plan.json", "metrics.json", "recipe.yaml", "model/config.json")
    assert_same_files(folder, whole, [*names, "model/model.safetensors"])
    made, wanted = ([known_by(row) for row in rows(each)] for each in (folder, whole))
    assert made == wanted and len(set(made)) == len(made)
    # Measured twice is only what a kill hit between the measurement and its line on disk.
    measured = log.read_text().splitlines().count("measuring")
    probes = sum(row["kind"] != "distance" for row in rows(folder))
    assert probes <= measured <= probes + len(MOMENTS) * TOGETHER


def test_a_finished_run_measures_nothing(whole, child, tmp_path):
    folder, method = whole
    log = tmp_path / "log"
    log.touch()
    assert child(folder, log, method) == 0
    assert log.read_text() == ""

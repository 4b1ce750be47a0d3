"""A run is killed with SIGKILL at several moments, and goes on each time as if nothing had been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from primesvt.cutter import TOGETHER

CHILD = """
import dataclasses, json, os, signal, sys
import torch
from torch.utils.data import Subset
torch.set_num_threads(1)
from primesvt import evaluation, probes, pruning
from primesvt.constraints import Constraints
from primesvt.data import load_data
from primesvt.models import create_model

folder, log, moment, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
method, left = json.loads(sys.argv[5]), count

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
        with self.path.open("ab") as file:
            file.write("".join(line + chr(10) for line in before).encode())
            file.write(last[: len(last) // 2].encode())
    die_at("half a line")
    real(self, *lines)
    die_at("line")

def save_model(*args, real=pruning.save_model, **options):
    die_at("plan")
    real(*args, **options)
    die_at("model")

evaluation._outcomes, probes.ProbeTable._append, pruning.save_model = outcomes, append, save_model
whole = load_data("digits")
data = dataclasses.replace(
    whole, selection=Subset(whole.selection, range(40)), test=Subset(whole.test, range(20))
)
result = pruning.prune(
    create_model("sdt_v2_digits", pretrained=True),
    data=data,
    constraints=Constraints(max_accuracy_drop=8, min_memory_saving=None),
    include=["*.block4_0.mlp.fc1", "*.conv2a.conv1", "*.conv1b.conv1"],
    rates=(0.3, 0.6, 0.9),
    verify=False,
    out=folder,
    **method,
)
print(result.verdict)
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


def child(folder, log, method, moment="never", count=1):
    words = [str(folder), str(log), moment, str(count), json.dumps(METHODS[method])]
    return subprocess.run(
        [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False
    )


def rows(folder):
    lines = (folder / "sensitivity.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def known_by(row):
    return row["kind"] == "distance", tuple(sorted(row.get("cuts", {}).items()))


@pytest.fixture(scope="module", params=METHODS)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    finished = child(folder, folder.parent / "log", request.param)
    assert finished.returncode == 0, finished.stderr
    return folder, request.param


def test_killed_again_and_again(whole, tmp_path):
    whole, method = whole
    folder, log = tmp_path / "run", tmp_path / "log"
    log.touch()
    for moment in MOMENTS + ENDS:
        killed = child(folder, log, method, *moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stdout, killed.stderr)
        assert not (folder / "metrics.json").exists()
    finished = child(folder, log, method)
    assert finished.returncode == 0, finished.stderr

    for name in ("plan.json", "metrics.json", "recipe.yaml", "model/config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    weights = "model/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    made, wanted = ([known_by(row) for row in rows(each)] for each in (folder, whole))
    assert made == wanted and len(set(made)) == len(made)
    # Measured twice is only what a kill hit between the measurement and its line on disk.
    measured = log.read_text().splitlines().count("measuring")
    probes = sum(row["kind"] != "distance" for row in rows(folder))
    assert probes <= measured <= probes + len(MOMENTS) * TOGETHER


def test_a_finished_run_measures_nothing(whole, tmp_path):
    folder, method = whole
    log = tmp_path / "log"
    log.touch()
    again = child(folder, log, method)
    assert again.returncode == 0, again.stderr
    assert log.read_text() == ""

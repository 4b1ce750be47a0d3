"""``prune`` and ``evaluate`` by two processes (gloo): the probes, plans and models of one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Subset

from primesvt import create_model, prune
from primesvt.cli import main
from primesvt.config import Constraints
from primesvt.data import Splits, load_data
from primesvt.evaluation.evaluator import outcomes
from primesvt.models.digest import model_digest
from primesvt.pruning.result import PruneResult

from ..same_files import assert_same_files
from ..two_processes import run_twice

LIMITS = Constraints(max_accuracy_drop=4, min_memory_saving=None)
PAPER = {"policy": "prime", "importance": "l2", "recovery": "none", "gate": "point"}
FEW = {"include": ["*conv1b*", "*conv2a*"]}
METHODS: dict[str, dict[str, Any]] = {"prime": {**PAPER, **FEW}}
ALLOCATE = {**PAPER, **FEW, "policy": "allocate"}  # test_lockstep has more of it
EVALUATE = ["evaluate", "sdt_v2_digits", "--batch-size", "40", "--json"]
MISTAKE = ["prune", "sdt_v2_digits", "--include", "nothing_like_it"]

# One process is killed after three probes; the other hears of it.
KILLED = """
import signal
from primesvt.cli import main
from primesvt.pruning import probe_table, pipeline
from tests.pruning.test_processes_prune import METHODS, pruned

if RANK == 1:
    made = []
    def add(self, *probes, real=probe_table.ProbeTable.add):
        for probe in probes:
            real(self, probe)
            made.append(probe)
            if len(made) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
    probe_table.ProbeTable.add = add

class Run:
    json = False

    def run(self, console):
        pruned(METHODS["prime"], f"{sys.argv[2]}/prime")

from primesvt.cli import app
app.parse = lambda _: Run()
sys.exit(main(["prune"]))
"""

TOGETHER = """
from tests.pruning import test_processes_prune as these

ours, opened = sys.argv[2], []
mistake = [*these.MISTAKE, "--out", f"{ours}/mistake"]
def note(event, args):
    if event == "open" and str(args[0]).startswith(ours):
        opened.append(str(args[0]))
sys.addaudithook(note)

found = {name: these.facts(these.pruned(these.METHODS[name], f"{ours}/{name}", told=name))
         for name in these.METHODS}
answer({
    "found": found,
    "again": these.facts(these.pruned(these.METHODS["prime"], f"{ours}/prime")),
    "solved again": these.facts(these.pruned(
        these.METHODS["prime"], f"{ours}/again", from_run=f"{ours}/prime"
    )),
    "timed": these.facts(these.timed(RANK)),
    "scored": these.facts(these.scored(RANK)),
    "commands": [these.command(words) for words in (these.EVALUATE, mistake)],
    "told": these.TOLD,
    "opened": sorted(set(opened)),
})
"""
TOLD: dict[str, int] = {}


def few() -> Splits:
    whole = load_data("digits")
    return dataclasses.replace(
        whole,
        calibration=Subset(whole.calibration, range(32)),
        selection=Subset(whole.selection, range(60)),
        test=Subset(whole.test, range(10)),
    )


def pruned(method: dict[str, Any], out: Any = None, told: str = "", **options: Any) -> PruneResult:
    """A run on a few groups, in seven batches and an incomplete one."""

    def progress(stage: str, done: int, total: int) -> None:
        TOLD[told] = TOLD.get(told, 0) + 1

    asked: dict[str, Any] = {
        "data": few(),
        "constraints": LIMITS,
        "rates": (0.3, 0.9),
        "batch_size": 8,
        "verify": False,
        "out": out,
        "progress": progress,
    }
    model = create_model("sdt_v2_digits", pretrained=True)
    return prune(model, **(asked | method | options))


def timed(rank: int) -> PruneResult:
    """With a limit on time, for which every process has a clock of its own."""
    from primesvt.profiling import timing as timing
    from primesvt.profiling import width_latency as stopwatch
    from primesvt.profiling.memory import parameter_count
    from primesvt.profiling.timing import Pace, measure
    from primesvt.pruning import metrics as conclusion

    def race_networks(parts: dict[str, Any], pace: Pace) -> dict[str, Any]:
        sizes = {name: parameter_count(part) for name, (part, _) in parts.items()}
        return {name: np.full(4, float(size) ** (1 / (1 + rank))) for name, size in sizes.items()}

    stopwatch.race_networks = race_networks
    conclusion.measure = partial(measure, pace=Pace(seconds=0, least=1, tick=0))
    timing.machine_of = stopwatch.machine_of = lambda _: f"machine {rank}"
    bound = LIMITS.model_copy(update={"max_latency": 0.95})
    one = {"include": ["*.block4_0.mlp.fc1"], "constraints": bound, "latency": True}
    return pruned(ALLOCATE, **one)


def scored(rank: int) -> PruneResult:
    """By a score that tells every process something else."""

    def score(model: Any) -> float:
        return float(outcomes(model, few().selection, batch_size=60).mean()) + rank

    limits = Constraints(max_accuracy_drop=0.1, min_memory_saving=None)
    one = {"include": ["*.block4_0.mlp.fc1"], "constraints": limits, "confirm": False}
    return pruned(METHODS["prime"], data=None, score=score, **one)


def command(words: list[str]) -> list[Any]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return [code, out.getvalue(), err.getvalue()]


def facts(result: PruneResult) -> dict[str, Any]:
    """All of a result, but the seconds that probes took."""
    probes = [dataclasses.asdict(probe) | {"seconds": 0} for probe in result.probes]
    return json.loads(
        json.dumps(
            {
                "plan": result.plan.to_dict(),
                "metrics": result.metrics.to_dict(),
                "weights": model_digest(result.model),
                "probes": probes,
            }
        )
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "sensitivity.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, {n: facts(pruned(METHODS[n], folder / n)) for n in METHODS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    ours = folder / "runs"
    with pytest.raises(AssertionError, match="SIGKILL") as killed:
        run_twice(KILLED, folder / "killed", str(ours), torchrun=True)
    said = [line for line in str(killed.value).splitlines() if "primesvt:" in line]
    assert len(said) == 1 and re.search("process of this run has ended|terminated", said[0]), said
    assert 4 <= len(rows(ours / "prime")) <= 5  # the unpruned network, and three probes or four
    return ours, run_twice(TOGETHER, folder / "together", str(ours))


@pytest.mark.parametrize("name", METHODS)
def test_all_find_what_one_finds(alone, both, name: str) -> None:
    """The first run was killed on its way, and goes on."""
    expected = alone[1][name]
    assert expected["metrics"]["saving"] > 0.05 and expected["metrics"]["drop"] <= 0.04
    for found in both[1]:
        assert found["found"][name] == expected


@pytest.mark.parametrize("name", METHODS)
def test_the_run_folder_is_that_of_one(alone, both, name: str) -> None:
    one, two = alone[0] / name, both[0] / name
    assert rows(two) == rows(one)
    names = ("plan.json", "metrics.json", "recipe.yaml", "model/model.safetensors")
    assert_same_files(two, one, names)
    assert (two / "report.html").is_file()


def test_networks_left_races_and_batches_were_shared(alone) -> None:
    """So that the tests above could fail."""
    seen = [row["samples"] for row in rows(alone[0] / "prime") if "rejected" in row]
    assert seen and max(seen) < 60
    assert {samples // 8 % 2 for samples in seen} == {0, 1}  # some left within a round


def test_a_run_that_has_ended_is_returned_to_all(alone, both) -> None:
    for found in both[1]:
        assert found["again"] == alone[1]["prime"]


def test_probes_of_another_run_are_used_by_all(alone, both) -> None:
    for found in both[1]:
        again = found["solved again"]
        assert again["plan"] == alone[1]["prime"]["plan"]
        assert again["probes"] == alone[1]["prime"]["probes"]


@pytest.mark.parametrize("name", ["timed", "scored"])
def test_what_processes_would_find_differently_is_agreed_upon(both, name: str) -> None:
    first, second = (found[name] for found in both[1])
    assert first == second
    if name == "timed":
        latency = first["metrics"]["before"]["latency"]
        assert {each["machine"] for each in latency} == {"machine 0"}
    else:
        assert first["metrics"]["before"]["score"] <= 1


def test_the_first_reads_writes_and_tells_alone(both) -> None:
    first, second = both[1]
    assert second["opened"] == [] and second["told"] == {}
    assert set(first["told"]) >= set(METHODS)
    assert {Path(path).name for path in first["opened"]} >= {"sensitivity.jsonl"}


def test_evaluate_counts_as_one_process_does(both) -> None:
    (first, mistake), (second, _) = (found["commands"] for found in both[1])
    code, out, _ = command(EVALUATE)
    assert first[:2] == [code, out] == [0, out]
    assert json.loads(out)["images"] == 450
    assert second[:2] == [0, ""]
    assert mistake[0] == 1


def test_a_mistake_is_one_line_and_ends_all(both) -> None:
    codes = [found["commands"][1] for found in both[1]]
    assert [code for code, *_ in codes] == [1, 1]
    assert [out for _, out, _ in codes] == ["", ""]
    lines = [err.splitlines() for *_, err in codes]
    assert [len(each) for each in lines] == [1, 1]
    assert lines[0][0].startswith("primesvt: no channel group matches 'nothing_like_it'")
    assert lines[1][0].startswith("primesvt, process 1: no channel group matches")
    assert not (both[0] / "mistake").exists()

"""Networks that show early that the gate will refuse them: rejected, never accepted, by a race."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from primesvt import Constraints, prune
from primesvt.evaluation.evaluator import DataEvaluator, evaluator_for
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.importance import find_importance
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.policies import AccuracyGate
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober, _answers

FC1 = "blocks.block4_0.mlp.fc1"


@pytest.fixture
def ruined(graph) -> dict[str, int]:
    return {group.name: 1 for group in graph.prunable()}


@pytest.fixture
def some(ruined) -> list[dict[str, int]]:
    return [ruined, {FC1: 159}, {**ruined, FC1: 3}, {FC1: 150}]


@pytest.fixture
def evaluate(digits) -> DataEvaluator:
    return DataEvaluator(splits=digits, batch_size=12, device=torch.device("cpu"))


def prober_of(model, graph, evaluate, *, limit=0.05, table=None, race=True) -> Prober:
    if not isinstance(table, ProbeTable):  # a path, or nothing
        size = parameter_bytes(model)
        reference = Reference(context={}, measurement=evaluate(model), parameter_bytes=size)
        table = ProbeTable(reference, table)
    total = len(table.reference.measurement.outcomes)
    return Prober(
        model=model,
        graph=graph,
        evaluate=evaluate,
        table=table,
        importance=find_importance("l2"),
        race=SequentialTest(limit=limit, total=total, gate="point") if race else None,
    )


def test_bad_networks_leave_and_the_others_see_all(model, graph, evaluate, some) -> None:
    prober, full = (prober_of(model, graph, evaluate, race=race) for race in (True, False))
    gate = AccuracyGate(kind="point", allowed=0.05, reference=prober.reference)
    found, wanted = prober.probes(some), full.probes(some)
    assert [probe.rejected is not None for probe in found] == [True, False, True, False]
    for early, whole in zip(found, wanted, strict=True):
        assert gate.judge(early).passed == gate.judge(whole).passed
        if early.rejected is None:
            assert (early.lost, early.gained, early.samples) == (whole.lost, whole.gained, 60)
        else:
            assert early.samples < 60 and early.samples % 12 == 0
            assert early.rejected == pytest.approx(0.05)
            assert early.parameter_bytes == whole.parameter_bytes


def test_what_was_rejected_early_is_measured_again_where_more_is_allowed(
    model, graph, evaluate, ruined, tmp_path
) -> None:
    path = tmp_path / "sensitivity.jsonl"
    strict = prober_of(model, graph, evaluate, table=path)
    assert strict.probe(ruined).rejected is not None
    again = ProbeTable.read(path)
    assert again.find(ruined) == strict.probe(ruined)
    stricter = prober_of(model, graph, evaluate, limit=0.01, table=again)
    lines = path.read_text().count("\n")
    assert stricter.probe(ruined).rejected is not None
    assert path.read_text().count("\n") == lines
    looser = prober_of(model, graph, evaluate, limit=0.999, table=again)
    assert looser.probe(ruined).samples == 60
    assert stricter.probe(ruined, full=True).rejected is None
    assert ProbeTable.read(path).find(ruined).samples == 60


def test_nothing_is_rejected_without_a_race(model, graph, evaluate, some) -> None:
    prober = prober_of(model, graph, evaluate, race=False)
    assert all(probe.rejected is None and probe.samples == 60 for probe in prober.probes(some))


def test_networks_leave_one_by_one(model, graph, evaluate, some) -> None:
    """Those that stay see what they would see alone."""
    prober = prober_of(model, graph, evaluate)
    seen: dict[int, int] = {}
    for number, cuts in enumerate(some):
        alone = prober_of(model, graph, evaluate).probe(cuts)
        seen[number] = alone.samples
    assert [probe.samples for probe in prober.probes(some)] == list(seen.values())


def test_exact_and_raced_runs_choose_the_same_here(model, digits) -> None:
    asked = {
        "constraints": Constraints(max_accuracy_drop=5, min_memory_saving=None),
        "include": ["blocks.conv1b*", "blocks.conv2a*"],
        "rates": (0.5, 0.9),
        "gate": "point",
        "importance": "l2",
        "recovery": "none",
        "lossless": False,
        "verify": False,
        "batch_size": 12,
    }
    early = 0
    for policy in ("allocate", "prime"):
        raced, exact = (
            prune(model, data=digits, policy=policy, exact=exact, **asked)
            for exact in (False, True)
        )
        assert raced.plan.groups == exact.plan.groups
        early += sum(probe.rejected is not None for probe in raced.probes)
        assert all(probe.rejected is None for probe in exact.probes)
    assert early > 0


def test_selection_images_come_in_an_order_of_the_seed(model, digits) -> None:
    def order(seed: int) -> list[int]:
        made = evaluator_for(model, digits, None, torch.device("cpu"), seed, 8, 0)
        assert isinstance(made, DataEvaluator)
        return [made.splits.selection.indices[n] for n in range(60)]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(60)) != order(0)


def test_another_gate_or_error_measures_again(model, graph, evaluate, ruined) -> None:
    prober = prober_of(model, graph, evaluate)
    probe = prober.probe(ruined)
    assert probe.rejected is not None and probe.race_error == 0.05
    for options in ({"error": 0.01}, {"limit": 0.08}):
        race = SequentialTest(**{"limit": 0.05, "total": 60, "gate": "point", **options})
        assert not _answers(probe, race)
    assert _answers(probe, SequentialTest(limit=0.05, total=60, gate="point", error=0.1))
    gained = dataclasses.replace(probe, gained=20)  # narrows what the bound gate allows
    wide = SequentialTest(limit=0.2, total=60, gate="bound")
    kept = dataclasses.replace(gained, rejected=wide.budget(20) / 60)
    assert wide.budget(20) < wide.budget() and _answers(kept, wide)
    assert not _answers(kept, SequentialTest(limit=0.2, total=60, gate="point"))


def test_solving_again_is_a_fresh_run(model, digits, tmp_path) -> None:
    """Early rejections of a stricter run do not count under a looser limit."""
    asked = {"policy": "prime", "importance": "l2", "recovery": "none", "gate": "point"}
    asked |= {"include": ["blocks.block4*"], "rates": (0.3, 0.6, 0.9), "batch_size": 12}
    asked |= {"lossless": False, "verify": False, "data": digits}
    strict, loose = (Constraints(max_accuracy_drop=d, min_memory_saving=None) for d in (1, 9))
    prune(
        model,
        constraints=strict,
        policy_options={"full_curves": True},
        out=tmp_path / "strict",
        **asked,
    )
    fresh = prune(model, constraints=loose, **asked)
    again = prune(model, constraints=loose, from_run=tmp_path / "strict", **asked)
    assert again.plan == fresh.plan

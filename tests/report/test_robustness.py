"""The map holds every group that was measured alone, at the rate that its width stands for."""

from __future__ import annotations

import pytest

from primesvt.report.heatmap import robustness
from primesvt.report.run_files import read_run

from .runs import CONV, FC1, FC3, costs, metrics_of, probe, reference, step_of, whole_run, write_run


def cells(found, row):
    line = next(each for each in found.heat.rows if each.name == row and each.cells)
    return dict(zip(found.heat.columns, line.cells, strict=True))


def test_accuracies_of_single_groups_are_the_map_of_the_walk(tmp_path):
    found = robustness(read_run(whole_run(tmp_path / "run", "prime")))
    assert found.kind == "accuracy"
    assert [row.name for row in found.heat.rows if not row.cells] == [
        "block4_0",
        "block3_0",
        "conv2a",
    ]
    row = cells(found, "conv1")
    assert [row[rate].value for rate in ("20%", "50%", "90%")] == ["98.8", "98.4", "97.7"]
    assert [row[rate].strong for rate in ("20%", "50%", "90%")] == [True, True, True]
    assert row["20%"].tone == 0.0
    assert row["90%"].tone == 1.0
    assert [rate for rate, cell in row.items() if cell.chosen] == ["50%"]


def test_only_what_is_within_the_limit_is_strong(tmp_path):
    limits = {"max_accuracy_drop": 0.3}
    found = robustness(read_run(whole_run(tmp_path / "run", "prime", limits=limits)))
    row = cells(found, "conv1")
    assert [row[rate].strong for rate in ("20%", "50%", "90%")] == [True, False, False]


def test_distances_are_the_map_where_groups_have_no_accuracy(tmp_path):
    found = robustness(read_run(whole_run(tmp_path / "run", "allocate")))
    assert found.kind == "distance"
    row = cells(found, "conv1")
    assert [row[rate].value for rate in ("20%", "50%", "80%")] == ["0.0", "1.0", "2.0"]
    taken = next(each for each in found.heat.rows if each.cells and each.name == "mlp.fc1")
    assert [cell.chosen for cell in taken.cells] == [c == "90%" for c in found.heat.columns]
    assert found.heat.holes


def test_widths_of_uncut_groups_are_read_off_the_model(tmp_path):
    folder = whole_run(tmp_path / "run", "allocate")
    assert robustness(read_run(folder)).unknown == ()
    (folder / "plan.json").write_text('{"steps": [], "config": null}')
    found = robustness(read_run(folder))
    assert set(found.unknown) == {FC1, FC3, CONV}
    assert found.heat.rows == ()


def test_what_went_losslessly_before_does_not_shift_the_rates(tmp_path):
    # 80 % of the 159 channels that the lossless step left are 32; of 160 they would be 32 too,
    # but half of 159 is 80 and 79 belongs to no rate of 160.
    probes = [reference(lossless_cuts={FC1: 2}), probe(0.98, 0.1, "layer", cuts={FC1: 79})]
    run = read_run(write_run(tmp_path / "run", steps=[step_of(FC1, 79, 0.98, 400)], probes=probes))
    assert robustness(run).heat.columns == ("50%",)


def test_answers_that_are_not_finite_are_said_to_be(tmp_path):
    distances = [0.001, 1e6]
    rows = [
        {"kind": "distance", "cuts": {FC1: kept}, "distance": far}
        for kept, far in zip((80, 16), distances, strict=True)
    ]
    run = read_run(
        write_run(tmp_path / "run", steps=[step_of(FC1, 80, 0.9, 400)], probes=[reference(), *rows])
    )
    row = cells(robustness(run), "mlp.fc1")
    assert (row["90%"].value, row["90%"].tone) == ("not finite", 1.0)
    assert row["50%"].tone == 1.0


def test_a_score_is_shown_as_it_is(tmp_path):
    metrics = metrics_of(
        before=costs(400, None, None, score=0.988),
        after=costs(300, None, None, score=0.9),
        limits={"max_accuracy_drop": 0.05},
    )
    probes = [reference(), probe(0.95123, 0.1, "layer", cuts={FC1: 80})]
    run = read_run(
        write_run(
            tmp_path / "run", metrics=metrics, steps=[step_of(FC1, 80, 0.9, 300)], probes=probes
        )
    )
    cell = cells(robustness(run), "mlp.fc1")["50%"]
    assert (cell.value, cell.strong) == ("0.9512", True)


@pytest.mark.parametrize("probes", [None, [], [reference()]])
def test_without_single_groups_there_is_no_map(tmp_path, probes):
    assert robustness(read_run(write_run(tmp_path / "run", probes=probes))) is None

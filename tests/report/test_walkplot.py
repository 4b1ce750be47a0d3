"""Every measured network stands where its figures say, and is told by what became of it."""

from __future__ import annotations

from collections import Counter

import pytest

from primesvt.report.run_files import read_run
from primesvt.report.tradeoff_plot import networks, walk_plot

from .runs import (
    BYTES,
    CONV,
    FC1,
    FC3,
    costs,
    metrics_of,
    probe,
    reference,
    step_of,
    whole_run,
    write_run,
)


@pytest.fixture(params=["prime", "allocate"])
def run(request, tmp_path):
    return read_run(whole_run(tmp_path / "run", request.param))


def test_each_network_is_there_once(run):
    prime = run.settings["policy"] == "prime"
    roles = Counter(each.role for each in networks(run))
    others = {"step": 1, "tried": 1, "rejected": 1} if prime else {"tried": 1}
    assert roles == {"before": 1, "plan": 1, **others}


def test_marks_stand_where_the_figures_say(run):
    drawn = walk_plot(run)
    plot = drawn.plot
    plan = next(mark for mark in plot.marks if mark.kind == "plan")
    saved, accuracy = run.metrics["saving"], run.metrics["after"]["selection"]
    assert plot.x.low + plan.x / 100 * (plot.x.high - plot.x.low) == pytest.approx(
        100 * saved, abs=1e-3
    )
    height = [plot.y.high - y / 100 * (plot.y.high - plot.y.low) for y in (plan.y, *plan.whisker)]
    expected = [100 * accuracy[name] for name in ("accuracy", "low", "high")]
    assert height == pytest.approx(expected, abs=1e-3)
    assert plan.turned == (plan.x > 60)


def test_the_limit_is_drawn_below_the_unpruned_accuracy(run):
    (rule,) = walk_plot(run).plot.rules
    assert rule.label == "limit 96.80%"


def test_a_way_joins_what_was_measured_and_a_jump_does_not_pretend(run):
    prime = run.settings["policy"] == "prime"
    drawn = walk_plot(run)
    assert [line.kind for line in drawn.plot.segments] == (["way", "way"] if prime else ["jump"])
    assert drawn.measured_steps is prime


def test_what_lies_far_below_stands_at_the_edge_and_is_counted(tmp_path):
    drawn = walk_plot(read_run(whole_run(tmp_path / "run", "prime")))
    assert drawn.below == 1
    (mark,) = [mark for mark in drawn.plot.marks if "below" in mark.kind]
    assert mark.y == 100
    assert mark.kind.startswith("rejected")
    assert "of the first 120 images" in mark.text


def test_lossless_cuts_are_not_part_of_what_was_probed(tmp_path):
    steps = [
        step_of(CONV, 63, None, BYTES, recovery="lossless: silent on 706 inputs"),
        step_of(FC1, 80, 0.98, 400_000),
    ]
    probes = [reference(), probe(0.98, 0.14, cuts={FC1: 80, FC3: 128})]
    probes[1]["cuts"] = {FC1: 80}
    run = read_run(write_run(tmp_path / "run", steps=steps, probes=probes))
    assert [each.role for each in networks(run)] == ["before", "plan"]


def test_a_score_has_its_own_axis(tmp_path):
    before, after = costs(400, None, None, score=0.7), costs(300, None, None, score=0.6512)
    limits = {"max_accuracy_drop": 0.1}
    metrics = metrics_of(before=before, after=after, limits=limits)
    run = read_run(
        write_run(tmp_path / "run", metrics=metrics, steps=[step_of(FC1, 8, 0.6512, 300)])
    )
    plot = walk_plot(run).plot
    assert plot.y.title == "Score"
    assert plot.rules[0].label == "limit 0.6"
    assert all("%" not in label for _, label in plot.y.ticks)
    assert "0.6512" in plot.label


def test_without_another_network_there_is_no_plot(tmp_path):
    assert walk_plot(read_run(write_run(tmp_path / "run"))) is None

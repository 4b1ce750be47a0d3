"""What was asked, what was reached, which limit bound: in words, with even digits."""

from __future__ import annotations

import re

import pytest

from primesvt.report.runfiles import read_run
from primesvt.report.summary import limits_asked, summary

from .runs import FC1, costs, metrics_of, step_of, write_run


def told(tmp_path, **changed):
    step = step_of(FC1, 80, 0.98, 348_366)
    recipe = changed.pop("recipe", "gate: bound\nlevel: 0.95\n")
    return read_run(
        write_run(tmp_path / "run", metrics=metrics_of(**changed), steps=[step], recipe=recipe)
    )


def limits(**changed):
    return {**metrics_of()["limits"], **changed}


def test_what_was_reached_has_two_digits_and_a_bound_rounded_up(tmp_path):
    said = summary(told(tmp_path))
    assert said.reached == (
        "25.00% of the parameter memory saved, 464.5 kB to 348.4 kB",
        "-0.67 points on the selection set; at 95% confidence less than 1.66 points lost",
        "-1.20 points on the test set, which chose nothing",
    )
    assert not re.search(r"\d\.\d{3}", " ".join([said.verdict, *said.asked, *said.reached]))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "at most 2 points of accuracy lost"),
        ({"max_accuracy_drop": 1.0}, "at most 1 point of accuracy lost"),
        ({}, "as much memory saved as the other limits allow"),
        ({"min_memory_saving": 0.25}, "at least 25.0% of the parameter memory saved"),
        ({"min_memory_saving": "8MB"}, "at least 8MB saved"),
        ({"max_parameter_memory": 8_000_000}, "at most 8.00 MB of parameters left"),
        ({"min_memory_saving": 0.25, "stop_at_saving": True}, "no more saving than that"),
        ({"max_latency": 5.0}, "max latency: 5.0"),
    ],
)
def test_what_was_asked(tmp_path, changed, line):
    assert line in summary(told(tmp_path, limits=limits(**changed))).asked


@pytest.mark.parametrize(
    ("gate", "line"),
    [("bound", "upper bound of the true loss, at 95% confidence"), ("point", "the measured loss")],
)
def test_the_gate_is_named(tmp_path, gate, line):
    run = told(tmp_path, recipe=f"gate: {gate}\nlevel: 0.95\n")
    assert summary(run).asked[-1].endswith(line)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("accuracy", "The accuracy limit"),
        ("saving", "The saving asked for"),
        ("rates", "No limit"),
        ("latency", "The limit on latency"),
        ("", "Not recorded"),
    ],
)
def test_the_limit_that_bound_is_named(tmp_path, name, bound):
    assert summary(told(tmp_path, bounded_by=name)).bound == bound


def test_limits_that_were_not_met_say_how_far_it_came(tmp_path):
    said = summary(told(tmp_path, met=False, required_saving=0.95))
    assert said.verdict.endswith("25.00% of the parameter memory saved, 95.00% asked.")


def test_a_score_is_no_accuracy(tmp_path):
    before, after = (costs(n, None, None, score=s) for n, s in ((464_488, 0.7), (348_366, 0.65)))
    said = summary(told(tmp_path, before=before, after=after, drop=0.05, bound=None))
    assert "-0.05 of the score" in said.reached
    assert "at most 2 of the score lost" in said.asked
    assert not any("points" in line for line in (*said.asked, *said.reached))


def test_what_went_losslessly_and_what_was_confirmed_is_said(tmp_path):
    confirmed = {"images": 600, "accuracy": 0.98, "drop": 0.004, "bound": 0.0151, "tried": 2}
    said = summary(told(tmp_path, lossless={"share": 0.0123}, confirmation=confirmed))
    assert "1.23% went losslessly before, and is not counted in that" in said.reached
    assert "-0.40 points on 600 images set aside, with a bound of 1.51" in said.reached


def test_old_figures_keep_their_own_verdict(tmp_path):
    metrics = metrics_of()
    del metrics["drop"], metrics["limits"], metrics["bounded_by"]
    run = read_run(write_run(tmp_path / "run", metrics=metrics, recipe="seed: 0\n"))
    assert summary(run).verdict == metrics["verdict"]
    assert limits_asked(run) == {"Saving asked": "as much as can be had"}

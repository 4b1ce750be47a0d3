"""What was asked, what was reached, which limit bound: in words, with even digits."""

from __future__ import annotations

import json
import re

import pytest

from primesvt.report import headline
from primesvt.report.run_files import read_run
from primesvt.report.summary import limits_asked, summary

from .runs import FC1, FC3, costs, metrics_of, step_of, write_run


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
        (
            {"max_latency": 0.64, "latency_batch": 8},
            "at most 0.64 of the time before for a batch of 8",
        ),
        (
            {"max_latency": "0.5", "latency_batch": 1},
            "at most 0.5 of the time before for a batch of 1",
        ),
        ({"max_latency": "12ms", "latency_batch": 32}, "at most 12ms for a batch of 32"),
        (
            {"max_latency": 0.5, "latency_batch": 4, "latency_runtime": "onnxruntime"},
            "at most 0.5 of the time before for a batch of 4 in onnxruntime",
        ),
        ({"max_membrane": "60kB"}, "at most 60kB of membrane potentials per image"),
        ({"max_membrane": 60_000}, "at most 60.0 kB of membrane potentials per image"),
        ({"max_time_steps": 5.0}, "max time steps: 5.0"),
    ],
)
def test_what_was_asked(tmp_path, changed, line):
    assert line in summary(told(tmp_path, limits=limits(**changed))).asked


def test_a_batch_size_alone_is_no_limit(tmp_path):
    idle = {"latency_batch": 32, "latency_runtime": "pytorch"}
    run = told(tmp_path, limits=limits(max_latency=None, **idle))
    assert not any("batch" in line or "runtime" in line for line in summary(run).asked)
    assert limits_asked(run).keys() == {"Loss allowed", "Saving asked", "Judged by"}


def time(after=21.5, before=40.0, allowed=20.0):
    held = after <= allowed
    return {"name": "latency", "before": before, "after": after, "allowed": allowed, "batch": 32,
            "held": held}  # fmt: skip


def potentials(after, allowed=60_000):
    return {"name": "membrane", "before": 112_736, "after": after, "allowed": allowed,
            "batch": None, "held": after <= allowed}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "others", "bound", "why"),
    [
        ("accuracy", [time(18.0)], "The accuracy limit", "breaks it."),
        (
            "accuracy",
            [time(19.9)],
            "The accuracy limit, and that on time",
            "breaks it. Of the time allowed 99% is used.",
        ),
        (
            "accuracy",
            [time(19.5), potentials(59_500)],
            "The accuracy limit, and that on time and that on membrane potentials",
            "Of the time allowed 98% is used. Of the membrane potentials allowed 99% is used.",
        ),
        ("accuracy", [time(21.5)], "The accuracy limit", "The limit on time does not hold."),
        ("rates", [time(19.9)], "The limit on time", "used."),
        ("rates", [time(19.9, before=20.0)], "No limit", "that is tried."),
        ("saving", [time(18.0)], "The saving asked for", "and the other limits held."),
    ],
)
def test_which_of_several_limits_bound(tmp_path, name, others, bound, why):
    said = summary(told(tmp_path, bounded_by=name, others=others))
    assert said.bound == bound and said.why.endswith(why)


def test_limits_beside_memory_are_said_to_hold_or_not(tmp_path):
    others = [time(21.5), potentials(59_000)]
    run = told(tmp_path, others=others, met=False, required_saving=0.2)
    said = summary(run)
    assert said.reached[1:3] == (
        "21.5 ms for a batch of 32, 0.54 of before (20.0 ms allowed): not held",
        "59.0 kB of membrane potentials per sample (60.0 kB allowed)",
    )
    assert said.verdict == (
        "The limits cannot be met together; this is the best plan found: "
        "21.5 ms for a batch of 32, 0.54 of before (20.0 ms allowed)."
    )
    both = summary(told(tmp_path / "both", others=others, met=False, required_saving=0.95))
    assert "25.00% of the parameter memory saved, 95.00% asked; 21.5 ms" in both.verdict
    line = headline(run.metrics)
    assert line.startswith("25.0% less parameter memory, 46.2% less time, 47.7% less membrane")


def test_multiples_of_channels_are_asked_and_counted(tmp_path):
    steps = [step_of(FC1, 80, 0.98, 348_366), step_of(FC3, 60, 0.98, 348_366)]
    recipe = "gate: bound\nlevel: 0.95\nchannel_multiple: 8\n"
    run = read_run(write_run(tmp_path / "run", metrics=metrics_of(), steps=steps, recipe=recipe))
    said = summary(run)
    assert "kept channels in multiples of 8" in said.asked
    assert "1 of 2 groups that were cut keep a multiple of 8" in said.reached
    assert limits_asked(run)["Channels kept"] == "multiples of 8"
    plain = summary(told(tmp_path / "plain"))
    assert not any("multiple" in line for line in (*plain.asked, *plain.reached))


def test_limits_in_a_table(tmp_path):
    asked = limits(max_latency=0.64, latency_batch=8, max_membrane="60kB")
    found = limits_asked(told(tmp_path, limits=asked))
    assert found["Time allowed"] == "0.64 of the time before, batch of 8"
    assert found["Potentials allowed"] == "60kB"


def test_fine_tuning_is_said_at_the_head(tmp_path):
    run = told(tmp_path)
    assert not any("fine-tuning" in line for line in summary(run).reached)
    (run.path / "finetuned").mkdir()
    record = {"test": costs(1, None, 0.9834)["test"], "selection": None}
    (run.path / "finetuned" / "record.json").write_text(json.dumps(record))
    line = "-0.33 points on the test set of 450 after fine-tuning"
    assert summary(read_run(run.path)).reached[-1] == line


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
        ("heat_output", "The limit on heat output"),
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

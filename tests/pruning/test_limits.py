"""Limits on time and on potentials, alone and in whole runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from primesvt import Constraints, create_model, prune
from primesvt.channels import trace
from primesvt.channels.widths import widths
from primesvt.data import load_data
from primesvt.profiling import width_latency as stopwatch
from primesvt.profiling.latency_table import NetworkTime
from primesvt.profiling.limits import LimitOutcome
from primesvt.profiling.memory import membrane_bytes, parameter_count
from primesvt.pruning.limits import LatencyLimit, MembraneLimit
from primesvt.pruning.metrics import Metrics
from primesvt.pruning.request import request_of

from ..lively import FAMILIES, lively

RATES = (0.3, 0.6, 0.9)
SOME = ["*.block4_0.mlp.fc1", "*.conv1b.conv1", "*.block4_0.attn.q+k", "*.block3_0.attn.v"]


@functools.cache
def small():
    """A few images of each set."""
    whole = load_data("digits")
    parts = {"calibration": 64, "selection": 60, "test": 20}
    sets = {name: Subset(getattr(whole, name), range(size)) for name, size in parts.items()}
    return dataclasses.replace(whole, **sets)


def run(**options):
    limits = {"max_accuracy_drop": 8, "min_memory_saving": None, **options.pop("limits", {})}
    asked = {"include": SOME, "rates": RATES, "gate": "point", "confirm": False}
    asked |= {"importance": "l2", "recovery": "none", "verify": False, "lossless": False}
    model = create_model("sdt_v2_digits", pretrained=True)
    return prune(model, data=small(), constraints=Constraints(**limits), **asked | options)


@pytest.fixture
def clock(monkeypatch):
    """A microsecond a parameter; says what is timed."""
    seen = []

    def race_networks(parts, pace):
        seen.append(sorted(parts))
        times = {name: 1e-6 * parameter_count(part) for name, (part, _) in parts.items()}
        return {name: np.full(4, time) for name, time in times.items()}

    monkeypatch.setattr(stopwatch, "race_networks", race_networks)
    return seen


def timed(share):
    """A stopwatch of a network that takes 40 ms."""
    return SimpleNamespace(
        whole=SimpleNamespace(milliseconds=40.0),
        batch=32,
        saved=lambda cuts: 3.0 * len(cuts),
        network=lambda cuts: NetworkTime(cuts=cuts, share=share, low=0, high=1, runs=9),
    )


@pytest.mark.parametrize(("asked", "needed"), [(0.75, 10.0), ("30ms", 10.0), ("0.05 s", -10.0)])
def test_a_limit_on_time(asked, needed):
    limit = LatencyLimit(stopwatch=timed(0.5), limits=Constraints(max_latency=asked))
    assert limit.needed == pytest.approx(needed)
    assert limit.saved({"a": 1, "b": 2}) == 6.0
    assert limit.proved({"a": 1}) == 20.0
    assert limit.at({"a": 1}).held
    slow = LatencyLimit(stopwatch=timed(0.9), limits=Constraints(max_latency=asked))
    assert slow.at({"a": 1}).held == (needed < 0)


def test_what_is_said_of_limits():
    time = LimitOutcome(name="latency", before=40.0, after=21.5, allowed=20.0, batch=32)
    assert str(time) == "21.5 ms for a batch of 32, 0.54 of before (20.0 ms allowed)"
    assert not time.held
    space = LimitOutcome(name="membrane", before=112_736, after=59_000, allowed=60_000)
    assert str(space) == "59.0 kB of membrane potentials per sample (60.0 kB allowed)"
    assert space.held
    for each in (time, space):
        assert LimitOutcome.from_dict(json.loads(json.dumps(each.to_dict()))) == each


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith("sdt_v3")])
def test_potentials_of_any_cut_are_foretold(family):
    one = lively(family)
    example, graph = (one.x[:1],), trace(one.model, one.x[:2])
    limit = MembraneLimit(model=one.model, graph=graph, example=example, allowed=1000)
    groups = [g for g in graph if g.status == "free" and g.kind != "heads" and g.size > 2]
    rng = np.random.default_rng(0)
    for _ in range(4):
        cuts = {g.name: int(rng.integers(1, g.size)) for g in groups if rng.random() < 0.6}
        assert limit.saved(cuts) == pytest.approx(limit.proved(cuts)), cuts
        assert limit.proved(cuts) > 0 or not cuts
    assert limit.needed == membrane_bytes(one.model, example) - 1000


def test_a_membrane_limit_holds_in_the_end():
    result = run(limits={"max_membrane": "100kB"})
    (held,) = result.metrics.others
    assert held.name == "membrane" and held.held and result.met
    example = (torch.rand(1, 1, 8, 8),)
    assert held.after == membrane_bytes(result.model, example) <= 100_000 < held.before
    assert "of membrane potentials per sample (100.0 kB allowed)" in result.verdict
    assert Metrics.from_dict(json.loads(json.dumps(result.metrics.to_dict()))) == result.metrics


@functools.cache
def narrowest():
    """Bytes of potentials with all of SOME at the narrowest width."""
    model, example = create_model("sdt_v2_digits"), (torch.rand(1, 1, 8, 8),)
    graph = trace(model, example)
    groups = [g for g in graph if any(fnmatch(g.name, glob) for glob in SOME)]
    assert len(groups) == len(SOME)
    limit = MembraneLimit(model=model, graph=graph, example=example, allowed=1)
    return limit.at({g.name: min(widths(g.size, RATES)) for g in groups}).after


def test_a_limit_that_accuracy_forbids_is_said_and_the_best_plan_kept():
    tight = {"max_membrane": narrowest(), "max_accuracy_drop": 2}
    result = run(limits=tight)
    (held,) = result.metrics.others
    assert not held.held and not result.met
    assert result.verdict.startswith("The limits cannot be met together: the best plan found")
    assert f"{narrowest() / 1e3:.1f} kB allowed" in result.verdict
    assert result.plan.steps and held.after < held.before


def test_a_limit_that_no_width_can_hold_is_refused_at_once():
    probed = []
    with pytest.raises(ValueError, match=r"max_membrane cannot hold.*allow more") as error:
        run(limits={"max_membrane": "20kB"}, progress=lambda stage, *_: probed.append(stage))
    assert f"it is {narrowest() / 1e3:.1f} kB of membrane potentials" in str(error.value)
    assert not {"curves", "whole networks"} & set(probed)


def test_any_policy_is_checked_in_the_end():
    walk = {"policy": "prime", "exact": True, "rates": (0.3,)}
    assert run(limits={"max_membrane": "112kB"}, **walk).met
    tight = run(limits={"max_membrane": "30kB"}, **walk)
    assert not tight.met and "30.0 kB allowed" in tight.verdict


def test_a_run_under_a_time_limit_goes_on_with_its_table(clock, tmp_path):
    folder = tmp_path / "run"
    first = run(limits={"max_latency": 0.9}, out=folder)
    (held,) = first.metrics.others
    assert first.met and held.name == "latency"
    assert held.after == pytest.approx(1e-3 * parameter_count(first.model), rel=1e-3)
    assert held.after <= 0.9 * held.before
    rows = (folder / "latency.jsonl").read_text()
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for name in ("metrics.json", "plan.json"):
        (again / name).unlink()
    before = len(clock)
    second = run(limits={"max_latency": 0.9}, out=again)
    assert len(clock) == before
    assert second.plan == first.plan and second.metrics == first.metrics
    assert (again / "latency.jsonl").read_text() == rows


@pytest.mark.parametrize("limit", [{"max_latency": 0.5}, {"max_membrane": "8kB"}])
def test_policies_that_do_not_count_limits_cannot_stop_at_them(limit):
    asked = Constraints(**limit, min_memory_saving=0.1, stop_at_saving=True)
    request_of(limits=asked)
    request_of(limits=Constraints(**limit), options={"policy": "prime"})
    with pytest.raises(ValueError, match=r"'uniform'.*'allocate'"):
        request_of(limits=asked, options={"policy": "uniform"})
    with pytest.raises(ValueError, match="allocate"):
        run(limits={**limit, "min_memory_saving": 0.1, "stop_at_saving": True}, policy="prime")


@pytest.mark.parametrize("policy", ["allocate", "prime", "uniform"])
def test_kept_channels_are_multiples(policy):
    some = [*SOME, "*.conv1a.conv1", "*.block4_0.attn.v"]
    result = run(policy=policy, channel_multiple=4, include=some)
    widths = [step.after[1] for step in result.plan.steps]
    assert widths and all(width % 4 == 0 for width in widths)


def test_multiples_of_heads_are_per_head():
    """Heads of ten channels: eight is the only multiple of four below, and four."""
    loose = {"max_accuracy_drop": 20}
    result = run(channel_multiple=4, include=["*.block4_0.attn.q+k"], limits=loose)
    (step,) = result.plan.steps
    assert step.before == (4, 10) and step.after[0] == 4 and step.after[1] in (4, 8)


def test_lossless_channels_go_by_multiples_too():
    silent = {"include": ["*.block4_0.mlp.fc1"], "rates": (0.5,), "lossless": True}
    (gone,) = run(**silent).metrics.lossless.channels
    assert (160 - gone.channels) % 8
    assert not run(**silent, channel_multiple=8).metrics.lossless.channels


def test_policies_of_any_width_refuse_multiples():
    for policy in ("psvit", "global"):
        with pytest.raises(ValueError, match=rf"channel_multiple .*{policy!r}"):
            request_of(options={"policy": policy, "channel_multiple": 8})
    for wrong in (0, -8, 1.5, True):
        with pytest.raises(ValueError, match="channel_multiple: "):
            request_of(options={"channel_multiple": wrong})

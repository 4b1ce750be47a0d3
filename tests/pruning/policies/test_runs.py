"""Every policy to compare with, at work on a small network that really spikes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json

import pytest
import torch
from torch.utils.data import Subset

from primesvt import load, prune
from primesvt.config import Constraints
from primesvt.evaluation.evaluator import outcomes
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.policies import find_policy
from primesvt.pruning.request import request_of
from primesvt.registry import POLICIES

SOME = ["*.block4_0.mlp.fc1", "*.block4_0.attn.q+k", "*.conv2a.conv1"]
QUICK = {"include": SOME, "verify": False, "gate": "point", "batch_size": 60, "lossless": False}
FREE = Constraints(max_accuracy_drop=1, min_memory_saving=None)
BASELINES = ("psvit", "uniform", "global", "random")


@pytest.fixture(scope="module")
def small(digits):
    """The same data with a calibration set of 32 images."""
    return dataclasses.replace(digits, calibration=Subset(digits.calibration, range(32)))


@pytest.fixture(scope="module")
def runs(small, _pretrained, tmp_path_factory):
    """A finished run per policy."""
    found = {}
    for policy in BASELINES:
        folder = tmp_path_factory.mktemp(policy) / "run"
        result = prune(
            copy.deepcopy(_pretrained),
            data=small,
            constraints=FREE,
            out=folder,
            policy=policy,
            importance="activity" if policy == "global" else "l2",
            recovery="bn" if policy == "global" else "none",
            **QUICK,
        )
        found[policy] = (result, folder)
    return found


@pytest.fixture(scope="module")
def modest(small, _pretrained):
    """Runs that save little, each made once."""
    asked = Constraints(max_accuracy_drop=20, min_memory_saving=0.05, stop_at_saving=True)

    @functools.cache
    def run(policy, seed=0):
        options = {**QUICK, "policy": policy, "importance": "l2", "recovery": "none"}
        net = copy.deepcopy(_pretrained)
        return prune(net, data=small, constraints=asked, seed=seed, **options)

    return run


@pytest.mark.parametrize("policy", BASELINES)
def test_within_the_limit_and_as_said(runs, model, small, policy):
    result, folder = runs[policy]
    assert result.met and result.plan.steps
    before, after = (outcomes(m, small.selection, batch_size=60) for m in (model, result.model))
    assert result.metrics.drop == pytest.approx(before.mean() - after.mean())
    assert result.metrics.drop <= 0.01 and result.metrics.bounded_by == "accuracy"
    assert "the accuracy limit bound" in result.verdict
    left = parameter_bytes(result.model)
    assert result.metrics.saving == pytest.approx(1 - left / parameter_bytes(model))
    assert result.plan.steps[-1].parameter_bytes == left
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(folder)(x), result.model(x))
    assert (folder / "report.html").read_text().count("block4_0.mlp.fc1") >= 1


def _networks(folder):
    lines = (folder / "sensitivity.jsonl").read_text().splitlines()
    return [tuple(sorted(json.loads(line).get("cuts", {}).items())) for line in lines]


@pytest.mark.parametrize("policy", BASELINES)
def test_a_killed_run_goes_on_to_the_same_plan(runs, small, _pretrained, tmp_path, policy):
    result, folder = runs[policy]
    half = tmp_path / "run"
    half.mkdir()
    (half / "recipe.yaml").write_bytes((folder / "recipe.yaml").read_bytes())
    lines = (folder / "sensitivity.jsonl").read_text().splitlines()
    (half / "sensitivity.jsonl").write_text("\n".join(lines[: 1 + len(lines) // 2]) + "\n")
    options = {**QUICK, "policy": policy, "out": half, "constraints": FREE}
    method = result.config.method
    options |= {"importance": method.importance, "recovery": method.recovery}
    resumed = prune(copy.deepcopy(_pretrained), data=small, **options)
    assert resumed.plan == result.plan
    assert _networks(half) == _networks(folder)
    assert len(set(_networks(half))) == len(lines)


def test_uniform_cuts_all_groups_at_one_rate(runs):
    steps = runs["uniform"][0].plan.steps
    assert len(steps) == len(SOME)
    rate = max(step.rate for step in steps)
    for step in steps:
        size, kept = step.before[1], step.after[1]
        assert abs(kept - size * (1 - rate)) <= 1


def test_psvit_measures_layers_alone(runs):
    alone = [cuts for cuts in _networks(runs["psvit"][1]) if len(cuts) == 1]
    assert {cuts[0][0] for cuts in alone} == {s.group for s in runs["uniform"][0].plan.steps}


@pytest.mark.quick
@pytest.mark.parametrize("policy", BASELINES)
def test_no_more_is_saved_than_was_asked_for(modest, policy):
    result = modest(policy)
    assert result.met and result.metrics.bounded_by == "saving"
    assert 0.05 <= result.metrics.saving < 0.09


def test_another_seed_draws_other_widths(modest):
    assert modest("random").plan != modest("random", seed=1).plan


@pytest.mark.quick
@pytest.mark.parametrize("policy", POLICIES.builtin)
def test_every_policy_has_rates_of_its_own(policy):
    rates = request_of(options={"policy": policy}).method.rates
    assert rates == find_policy(policy).rates
    assert list(rates) == sorted(rates) and rates[0] > 0 and rates[-1] < 1
    assert request_of(options={"policy": policy, "rates": [0.5]}).method.rates == (0.5,)

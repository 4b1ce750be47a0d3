"""The lossless step inside a run: what it saves is counted apart, and everything replays."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.utils.data import TensorDataset

from primesvt import load, prune
from primesvt.channels.plan import Plan, apply_plan
from primesvt.config import Constraints
from primesvt.evaluation.evaluator import outcomes
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.metrics import Metrics
from primesvt.report import headline

from .conftest import Chain, answer, built, fired, force, images, picture

FC1, FC3, CONV = "blocks.block4_0.mlp.fc1", "blocks.block3_0.mlp.fc1", "blocks.conv2a.conv1"
FREE = Constraints(max_accuracy_drop=8, min_memory_saving=None)
SILENT, CONSTANT = (3, 7, 100), 11


@pytest.fixture
def forced(trained):
    """Silent channels in two groups, one of which the policy cannot narrow any further."""
    force(trained.blocks.block4_0.mlp.fc1.bn, SILENT)
    force(trained.blocks.block4_0.mlp.fc1.bn, [CONSTANT], fires=True)
    force(trained.blocks.conv2a.conv1.bn, range(1, 64))
    return trained


def run(model, data, **options):
    asked = {"constraints": FREE, "include": [FC1, CONV], "rates": (0.3, 0.6), "gate": "point"}
    asked["exact"] = True
    asked |= {"policy": "prime", "importance": "l2", "recovery": "none", "verify": False}
    return prune(model, data=data, **(asked | options))


def test_savings_are_counted_apart(forced, digits, tmp_path):
    state = copy.deepcopy(forced.state_dict())
    result = run(forced, digits, out=tmp_path / "run")
    metrics, account = result.metrics, result.metrics.lossless
    assert all(torch.equal(value, state[name]) for name, value in forced.state_dict().items())

    removed = {each.group: each for each in account.channels}
    assert removed[CONV].channels == 63
    assert removed[CONV].constant == 0
    assert removed[FC1].constant == 1
    assert removed[FC1].silent >= 3
    assert account.inputs == 100
    assert account.checked == 60

    whole, left = parameter_bytes(forced), parameter_bytes(result.model)
    lean = whole - account.parameter_bytes
    assert account.share == 1 - lean / whole
    assert metrics.saving == 1 - left / lean
    assert (metrics.before.parameter_bytes, metrics.after.parameter_bytes) == (whole, left)
    assert lean - left > 0
    step = next(step for step in result.plan.steps if step.group == FC1)
    width = 160 - removed[FC1].channels
    assert step.before == (1, 160)
    assert step.after[1] in {round(width * 0.7), round(width * 0.4)}
    assert step.saving == metrics.saving
    assert step.recovery.startswith(f"nothing; {removed[FC1].channels} lossless: silent or const")

    own = result.plan.steps[0]
    assert (own.group, own.before, own.after) == (CONV, (1, 64), (1, 1))
    assert own.recovery == "lossless: silent on 100 inputs"
    assert own.saving == 0.0
    assert result.plan.groups[CONV] == ((0,),)
    assert not {*SILENT, CONSTANT} & set(result.plan.groups[FC1][0])

    assert any("in none of its figures" in note and "100 inputs" in note for note in metrics.notes)
    assert f"after {account.share:.1%} lossless" in headline(metrics.to_dict())
    assert Metrics.from_dict(json.loads(json.dumps(metrics.to_dict()))) == metrics
    report = (tmp_path / "run" / "report.html").read_text()
    assert "lossless" in report
    x = torch.stack([torch.as_tensor(digits.test[i][0]) for i in range(8)])
    assert torch.equal(answer(load(tmp_path / "run"), x), answer(result.model, x))
    assert Plan.load(tmp_path / "run") == result.plan


def test_the_plan_gives_the_same_widths(forced, digits):
    result = run(forced, digits)
    again = copy.deepcopy(forced)
    apply_plan(again, result.plan)
    found = {name: value.shape for name, value in again.state_dict().items()}
    assert found == {name: value.shape for name, value in result.model.state_dict().items()}


def test_nothing_but_the_lossless_step(forced, digits):
    strict = Constraints(max_accuracy_drop=0, min_memory_saving=None)
    result = run(forced, digits, constraints=strict, include=[CONV], rates=(0.9,))
    assert result.verdict == (
        "Nothing more was removed: no probed cut stays within the accuracy limit."
    )
    assert result.metrics.saving == 0.0
    assert result.metrics.lossless.parameter_bytes > 0
    before, after = (outcomes(m, digits.selection) for m in (forced, result.model))
    assert (before == after).all()
    assert [step.group for step in result.plan.steps] == [CONV]
    again = copy.deepcopy(forced)
    apply_plan(again, result.plan)
    assert again.blocks.conv2a.conv1.conv.out_channels == 1


def test_limits_count_from_the_lean_network(forced, digits):
    loose = {"max_accuracy_drop": 60}
    half = run(forced, digits, constraints=Constraints(**loose, min_memory_saving=0.05))
    lean = half.metrics.before.parameter_bytes - half.metrics.lossless.parameter_bytes
    assert half.metrics.required_saving == pytest.approx(0.05, abs=1e-5)
    size = lean - 1000
    limit = Constraints(**loose, min_memory_saving=None, max_parameter_memory=size)
    assert run(forced, digits, constraints=limit).metrics.required_saving == 1000 / lean


def test_off_and_in_the_paper_preset(forced, digits):
    for options in ({"lossless": False}, {"preset": "paper"}):
        result = run(forced, digits, include=[FC1], **options)
        assert result.metrics.lossless is None
        assert result.metrics.saving == 1 - parameter_bytes(result.model) / parameter_bytes(forced)
        assert "lossless" not in " ".join(result.metrics.notes).lower()


def test_with_nothing_to_find_nothing_changes(trained, digits):
    found = run(trained, digits, include=[CONV])
    assert found.metrics.lossless.channels == ()
    plain = run(trained, digits, include=[CONV], lossless=False)
    assert found.plan == plain.plan
    assert found.metrics.notes == plain.metrics.notes
    state = plain.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())


def test_resumed_and_solved_again(forced, digits, tmp_path):
    first = run(forced, digits, out=tmp_path / "run")
    finished = run(forced, digits, out=tmp_path / "run")
    assert (finished.plan, finished.metrics) == (first.plan, first.metrics)
    (tmp_path / "run" / "metrics.json").unlink()
    probes = (tmp_path / "run" / "sensitivity.jsonl").read_bytes()
    assert run(forced, digits, out=tmp_path / "run").plan == first.plan
    assert (tmp_path / "run" / "sensitivity.jsonl").read_bytes() == probes
    again = run(forced, digits, from_run=tmp_path / "run")
    assert again.plan == first.plan
    with pytest.raises(ValueError, match="another lossless"):
        run(forced, digits, from_run=tmp_path / "run", lossless=False)
    with pytest.raises(ValueError, match="another lossless cuts"):
        run(forced, digits, from_run=tmp_path / "run", include=[FC1], out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_default_method_on_the_lean_network(forced, digits):
    result = prune(
        forced,
        data=digits,
        constraints=Constraints(max_accuracy_drop=10, min_memory_saving=None),
        include=[FC1, CONV],
        rates=(0.3, 0.6),
        gate="point",
        verify=False,
    )
    assert result.metrics.lossless.of(CONV).channels == 63
    assert "least squares" in next(s.recovery for s in result.plan.steps if s.group == FC1)
    found = outcomes(result.model, digits.selection).mean()
    assert result.metrics.after.selection.accuracy == found


def scored(net):
    x = images(30, seed=3)
    with torch.no_grad():
        labels = answer(net, x).argmax(1)

    def score(network):
        return answer(network, x).argmax(1) == labels

    return score


def test_foreign_module_by_score(tmp_path):
    net = built(Chain)
    force(net.norm1, [2, 5])
    force(net.norm1, [6], fires=True)
    options = {
        "score": scored(net),
        "constraints": Constraints(max_accuracy_drop=0.9, min_memory_saving=None),
        "gate": "point",
        "rates": (0.5,),
    }
    result = prune(net, **options, out=tmp_path / "run")
    account = result.metrics.lossless
    assert account.inputs == account.checked == 30
    removed = account.of("conv1")
    assert (removed.silent, removed.constant) == (2, 1)
    assert not {2, 5, 6} & set(result.plan.groups["conv1"][0])
    again = load(tmp_path / "run", into=built(Chain))
    assert torch.equal(answer(again, images()), answer(result.model, images()))
    assert prune(net, **options, out=tmp_path / "run").metrics == result.metrics


def test_a_score_that_only_the_lossless_step_touches_is_measured(tmp_path):
    net, x = built(Chain), images(10)

    def score(network):
        return float(answer(network, x).abs().mean()) + sum(p.numel() for p in network.parameters())

    force(net.norm1, [2])
    result = prune(
        net,
        score=score,
        constraints=Constraints(max_accuracy_drop=0, min_memory_saving=None),
        gate="point",
        include=["conv1"],
        rates=(0.5,),
    )
    assert result.metrics.after.score == pytest.approx(score(result.model))


def test_foreign_module_by_data():
    net, x = built(Chain), images(40)
    force(net.norm1, [4])
    result = prune(
        net,
        data=TensorDataset(x, answer(net, x).argmax(1)),
        constraints=Constraints(max_accuracy_drop=90, min_memory_saving=None),
        gate="point",
        rates=(0.5,),
    )
    assert result.metrics.lossless.of("conv1").silent == 1


@pytest.mark.parametrize("name", ["spikformer_digits", "sdt_v2_digits"])
def test_leftovers_go_before_a_policy_cuts_and_load_again(name, tmp_path):
    kd = name == "sdt_v2_digits"
    model = fired(name, **({"distillation": True} if kd else {}))
    x = picture(model)
    target = answer(model, x).argmax(1)
    group = "blocks.block4_0.mlp.fc1" if kd else "blocks.block0.mlp.fc1"
    result = prune(
        model,
        score=lambda network: answer(network, x).argmax(1) == target,
        constraints=Constraints(max_accuracy_drop=0.99, min_memory_saving=None),
        gate="point",
        include=[group],
        rates=(0.5,),
        verify=False,
        out=tmp_path / "run",
    )
    account = result.metrics.lossless
    assert (account.merged_head, account.dead_parameters > 0) == (kd, not kd)
    assert [step.group for step in result.plan.steps] == [group]
    again = load(tmp_path / "run")
    assert again.state_dict().keys() == result.model.state_dict().keys()
    assert torch.equal(answer(again, x), answer(result.model, x))
    apply_plan(model, result.plan)
    widths = {n: v.shape for n, v in model.state_dict().items()}
    assert all(widths[n] == v.shape for n, v in result.model.state_dict().items())
    assert len(widths) > len(result.model.state_dict())

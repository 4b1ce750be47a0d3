"""The main job with the defaults: allocation, OBS, refit, from data and from a score alone."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from primesvt import load, prune
from primesvt.config import Constraints
from primesvt.evaluation.evaluator import outcomes
from primesvt.profiling.memory import parameter_bytes

SOME = ["*.block4_0.mlp.fc1", "*.block4_0.attn.q+k", "*.conv2a.conv1"]
QUICK = {"include": SOME, "rates": (0.3, 0.6), "verify": False, "gate": "point", "batch_size": 60}
FREE = Constraints(max_accuracy_drop=8, min_memory_saving=None)


@pytest.fixture(scope="module")
def small(digits):
    """The same data with a calibration set of 64 images."""
    return dataclasses.replace(digits, calibration=Subset(digits.calibration, range(64)))


@pytest.fixture(scope="module")
def finished(small, _pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "run"
    model = copy.deepcopy(_pretrained)
    return prune(model, data=small, constraints=FREE, out=folder, **QUICK), folder


@pytest.mark.quick
def test_within_the_limit_and_as_said(finished, model, small):
    result, folder = finished
    assert result.met and result.plan.steps
    before, after = (outcomes(m, small.selection, batch_size=60) for m in (model, result.model))
    assert result.metrics.drop == pytest.approx(before.mean() - after.mean())
    assert result.metrics.drop <= 0.08
    left = parameter_bytes(result.model)
    lossless = result.metrics.lossless.parameter_bytes
    assert result.metrics.saving == pytest.approx(1 - left / (parameter_bytes(model) - lossless))
    told = {step.group.rpartition(".")[2]: step.recovery for step in result.plan.steps}
    assert "least squares" in told.get("fc1", "least squares")
    assert "batch norm only" in told.get("q+k", "batch norm only")
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(folder)(x), result.model(x))


def test_refitted_weights_are_in_the_model(finished, model):
    """The surviving columns of a reader are not those of the original."""
    result, _ = finished
    fc1 = next(name for name in result.plan.groups if name.endswith("mlp.fc1"))
    kept = list(result.plan.groups[fc1][0])
    reader = fc1.replace("fc1", "fc2.conv.weight")
    before = model.get_parameter(reader)[:, kept]
    assert not torch.allclose(before, result.model.get_parameter(reader), atol=1e-4)


def test_a_finished_run_and_a_half_one_give_the_same_plan(finished, model, small, tmp_path):
    result, folder = finished
    again = prune(model, data=small, constraints=FREE, out=folder, **QUICK)
    assert again.plan == result.plan
    lines = (folder / "sensitivity.jsonl").read_text().splitlines()
    half = tmp_path / "run"
    half.mkdir()
    (half / "recipe.yaml").write_bytes((folder / "recipe.yaml").read_bytes())
    (half / "sensitivity.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    resumed = prune(model, data=small, constraints=FREE, out=half, **QUICK)
    assert resumed.plan == result.plan
    keys = [_key(line) for line in (half / "sensitivity.jsonl").read_text().splitlines()]
    assert keys == [_key(line) for line in lines]
    assert len(set(keys)) == len(keys)


def _key(line):
    row = json.loads(line)
    return row["kind"] == "distance", tuple(sorted(row.get("cuts", {}).items()))


def test_solving_again_gives_what_a_fresh_run_gives(finished, model, small):
    _, folder = finished
    limits = Constraints(max_accuracy_drop=4, min_memory_saving=None)
    fresh = prune(model, data=small, constraints=limits, **QUICK)
    again = prune(model, data=small, constraints=limits, from_run=folder, **QUICK)
    assert again.plan == fresh.plan
    assert any("Solved again" in note for note in again.metrics.notes)
    with pytest.raises(ValueError, match="another recovery"):
        prune(model, data=small, constraints=FREE, from_run=folder, recovery="bn", **QUICK)


def test_a_score_is_watched_in_its_one_call_of_the_original(model, small):
    images = torch.stack([small.selection[i][0] for i in range(60)])
    labels = [small.selection[i][1] for i in range(60)]
    calls = []

    def score(network):
        calls.append(network)
        with torch.no_grad():
            return network(images).argmax(1) == torch.tensor(labels)

    limits = Constraints(max_accuracy_drop=0.08, min_memory_saving=None)
    result = prune(model, score=score, constraints=limits, **QUICK)
    whole = [net for net in calls if parameter_bytes(net) == parameter_bytes(model)]
    assert len(whole) == 1
    assert any("least squares" in step.recovery for step in result.plan.steps)
    assert not any("no calibration inputs" in note for note in result.metrics.notes)


def test_a_score_that_shows_no_input_falls_back_and_says_so(model, small):
    images = torch.stack([small.selection[i][0] for i in range(60)])
    labels = torch.tensor([small.selection[i][1] for i in range(60)])

    def score(network):
        with torch.no_grad():
            return network.head(network.blocks(images.expand(2, *images.shape))).mean(0).argmax(
                1
            ) == (labels)

    result = prune(
        model,
        score=score,
        example_input=images[:2],
        constraints=Constraints(max_accuracy_drop=0.08, min_memory_saving=None),
        **QUICK,
    )
    notes = " ".join(result.metrics.notes)
    assert "recovery is 'none' instead of 'refit'" in notes
    assert "importance is 'l2' instead of 'obs'" in notes
    assert result.plan.steps
    assert {step.recovery for step in result.plan.steps} == {"nothing"}


def test_confirmation_is_on_record_where_there_are_images(model, digits):
    whole = dataclasses.replace(
        digits,
        selection=Subset(digits.train, range(280)),
        calibration=Subset(digits.calibration, range(64)),
    )
    limits = Constraints(max_accuracy_drop=30, min_memory_saving=None)
    asked = QUICK | {"include": SOME[:1], "gate": "bound", "batch_size": 120}
    result = prune(model, data=whole, constraints=limits, **asked)
    told = result.metrics.confirmation
    assert told is not None and told["images"] == 168
    assert told["bound"] <= 0.3
    assert any("168 of 280 selection images confirm" in note for note in result.metrics.notes)
    asked |= {"policy": "prime", "importance": "l2", "recovery": "none", "lossless": False}
    none = prune(model, data=whole, constraints=limits, confirm=False, **asked)
    assert none.metrics.confirmation is None


def test_presets_are_what_they_say(model, small):
    limits = {"data": small, "constraints": FREE}
    asked = {k: v for k, v in QUICK.items() if k != "gate"}
    paper = prune(model, preset="paper", **limits, **asked)
    by_hand = prune(
        model,
        policy="prime",
        importance="l2",
        recovery="none",
        gate="point",
        confirm=False,
        lossless=False,
        **limits,
        **asked,
    )
    assert paper.plan == by_hand.plan
    assert {step.recovery for step in paper.plan.steps} == {"nothing"}


def test_a_foreign_module_with_a_linear_reader(own_net):
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = own_net(images).argmax(1)
    own_net.lif.reset()
    result = prune(
        own_net,
        data=TensorDataset(images, labels),
        constraints=Constraints(max_accuracy_drop=60, min_memory_saving=None),
        rates=(0.2, 0.5),
        gate="point",
        importance="taylor",
    )
    assert result.plan.steps and result.metrics.saving > 0


def test_calibration_inputs_that_are_not_finite_are_named(model, small):
    """They would spoil every recovery, and the result would say that no cut is good enough."""
    inputs = torch.rand(6, 1, 8, 8)
    inputs[5, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="calibration batch 1 holds NaN or infinity"):
        prune(model, data=small, calibration=[inputs[:4], inputs[4:]], constraints=FREE, **QUICK)

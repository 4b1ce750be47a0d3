"""The main job from Python: limits, sets, scores, folders, and mistakes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import Dataset, TensorDataset

from primesvt import create_model, load, prune
from primesvt.channels.plan import Plan, apply_plan
from primesvt.config import Constraints
from primesvt.evaluation.confidence import paired_drop_bound
from primesvt.evaluation.evaluator import outcomes
from primesvt.profiling.memory import parameter_bytes

SOME = ["*.block4_0.mlp.fc1", "*.block4_0.attn.q+k", "*.conv2a.conv1"]
RATES = (0.3, 0.6, 0.9)
FREE = Constraints(max_accuracy_drop=8, min_memory_saving=None)


PAPER = {
    "policy": "prime",
    "importance": "l2",
    "recovery": "none",
    "confirm": False,
    "lossless": False,
    "exact": True,
}


def run(model, data, **options):
    """The paper's walk on a few groups."""
    asked = {"constraints": FREE, "include": SOME, "rates": RATES, "gate": "point"}
    asked |= {"verify": False} | PAPER | options
    return prune(model, data=data, **asked)


class Watched(Dataset):
    """Counts how often samples are read."""

    def __init__(self, inner):
        self.inner, self.reads = inner, 0

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.reads += 1
        return self.inner[index]


@pytest.fixture(scope="module")
def pruned(digits, _pretrained):
    return run(copy.deepcopy(_pretrained), digits, verify=True)


@pytest.mark.quick
def test_within_the_limit_and_exactly_as_said(pruned, model, digits):
    metrics = pruned.metrics
    assert pruned.met
    assert 0.05 < metrics.saving < 0.5
    assert metrics.drop <= 0.08
    before = outcomes(model, digits.selection)
    after = outcomes(pruned.model, digits.selection)
    assert metrics.before.selection.accuracy == before.mean()
    assert metrics.after.selection.accuracy == after.mean()
    assert metrics.drop == pytest.approx(before.mean() - after.mean())
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    assert metrics.bound == paired_drop_bound(lost, gained, 60)
    assert metrics.saving == 1 - parameter_bytes(pruned.model) / parameter_bytes(model)
    assert metrics.after.parameter_bytes == parameter_bytes(pruned.model)
    assert metrics.after.test.accuracy == outcomes(pruned.model, digits.test).mean()
    assert metrics.after.test.images == 40
    assert metrics.after.membrane_bytes_per_sample < metrics.before.membrane_bytes_per_sample
    assert "(8 allowed)" in pruned.verdict
    assert "accuracy limit bound" in pruned.verdict or "no limit bound" in pruned.verdict


def test_plan_replays_to_the_same_model(pruned, model):
    apply_plan(model, pruned.plan)
    state = pruned.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    last = pruned.plan.steps[-1]
    assert last.saving == pruned.metrics.saving
    assert [step.group for step in pruned.plan.steps] == list(pruned.plan.groups)


def test_given_model_is_not_changed(model, digits):
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, digits, include=SOME[:1], rates=(0.5,))
    assert model.training
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_gates_never_see_the_test_set(model, digits):
    test = Watched(digits.test)
    data = dataclasses.replace(digits, test=test)
    seen = []

    def progress(stage, done, total):
        seen.append((stage, test.reads))

    run(model, data, include=SOME[:2], progress=progress)
    decided = [*itertools.takewhile(lambda row: not row[0].startswith("test set"), seen)]
    assert {reads for _, reads in decided} == {0}
    assert test.reads == 2 * len(test)
    assert "walk" in {stage for stage, _ in decided}


def test_readings_and_gates_differ_as_they_should(model, digits, pruned):
    bound = run(model, digits, gate="bound")
    assert bound.metrics.saving <= pruned.metrics.saving
    assert all(step.bound <= 0.08 for step in bound.plan.steps)
    assert "at 95% confidence below" in bound.verdict
    b = run(model, digits, policy_options={"reading": "B"})
    assert b.metrics.drop <= 0.08


def test_order_by_all_members(model, digits):
    result = run(model, digits, order="group", include=["*.conv2a.conv1", "*.block4_0.attn.v"])
    assert result.plan.steps[0].group == "blocks.conv2a.conv1"


def test_unreachable_limits_give_the_best_plan(model, digits):
    limits = Constraints(max_accuracy_drop=8, min_memory_saving=0.99)
    result = run(model, digits, constraints=limits, include=SOME[:1])
    assert not result.met
    assert result.plan.steps
    assert "cannot be met together" in result.verdict
    assert "99.00% asked" in result.verdict
    assert f"{result.metrics.saving:.2%}" in result.verdict


def test_stops_at_the_saving(model, digits, pruned):
    limits = Constraints(max_accuracy_drop=8, min_memory_saving=0.02, stop_at_saving=True)
    result = run(model, digits, constraints=limits)
    assert result.met
    assert result.metrics.bounded_by == "saving"
    assert 0.02 <= result.metrics.saving < pruned.metrics.saving
    assert len(result.plan.steps) < len(pruned.plan.steps)


def test_same_seed_same_plan(model, digits, pruned):
    again = run(model, digits)
    assert again.plan == pruned.plan
    assert again.metrics == pruned.metrics


def test_streams_only_when_asked(model, digits):
    name = "blocks.down4:stream"
    with pytest.raises(ValueError, match=r"down4:stream.*residual stream"):
        run(model, digits, include=[name])
    limits = Constraints(max_accuracy_drop=90, min_memory_saving=None)
    result = run(
        model, digits, include=[name], include_streams=True, constraints=limits, rates=(0.1,)
    )
    assert [step.group for step in result.plan.steps] == [name]


def test_weights_with_nan_are_named():
    model = create_model("sdt_v2_digits", pretrained=True)
    with torch.no_grad():
        model.blocks.block4_0.mlp.fc1.conv.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"fc1\.conv\.weight' holds NaN"):
        prune(model, data="digits")


def test_save_and_load(pruned, tmp_path):
    folder = pruned.save(tmp_path / "run")
    names = {path.name for path in folder.iterdir()}
    files = {"recipe.yaml", "sensitivity.jsonl", "plan.json", "metrics.json", "report.html"}
    assert names == files | {"model"}
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(folder)(x), pruned.model(x))
    assert Plan.load(folder) == pruned.plan
    assert json.loads((folder / "metrics.json").read_text())["verdict"] == pruned.verdict
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["method"]["gate"] == "point"


def test_vector_score_equals_data(model, digits, pruned):
    result = prune(
        model,
        score=lambda m: outcomes(m, digits.selection),
        constraints=Constraints(max_accuracy_drop=0.08, min_memory_saving=None),
        include=SOME,
        rates=RATES,
        gate="point",
        **PAPER,
    )
    assert result.plan.groups == pruned.plan.groups
    assert result.metrics.bound == pruned.metrics.bound
    assert result.metrics.after.selection is None
    assert result.metrics.after.test is None
    assert result.metrics.after.score == pruned.metrics.after.selection.accuracy


def test_scalar_score_in_its_own_unit(model, digits):
    images = torch.stack([image for image, _ in digits.selection])
    with torch.no_grad():
        target = model(images)

    def score(network):
        with torch.no_grad():
            return 100 - float((network(images) - target).abs().mean())

    limits = Constraints(max_accuracy_drop=0.5, min_memory_saving=None)
    asked = {"include": SOME, "rates": RATES, "gate": "point"} | PAPER
    result = prune(model, score=score, constraints=limits, **asked)
    assert result.plan.steps
    assert score(result.model) == pytest.approx(result.metrics.after.score)
    assert result.metrics.after.score >= 99.5
    assert result.metrics.bound is None
    with pytest.raises(ValueError, match="bound gate pairs outcomes"):
        prune(model, score=score, constraints=limits, gate="bound")


def test_foreign_module(own_net, digits, tmp_path):
    labels = torch.arange(40) % 10
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = own_net(images).argmax(1)
    own_net.lif.reset()
    result = prune(
        own_net,
        data=TensorDataset(images, labels),
        constraints=Constraints(max_accuracy_drop=60, min_memory_saving=None),
        rates=(0.2, 0.5),
        gate="point",
        **PAPER,
        out=tmp_path / "run",
    )
    assert {step.group for step in result.plan.steps} <= {"conv", "fc1"}
    assert result.metrics.saving > 0
    fresh = type(own_net)().eval()
    again = load(tmp_path / "run", into=fresh)
    assert torch.equal(again(images), result.model(images))
    result.model.lif.reset()
    finished = prune(
        own_net,
        data=TensorDataset(images, labels),
        constraints=Constraints(max_accuracy_drop=60, min_memory_saving=None),
        rates=(0.2, 0.5),
        gate="point",
        **PAPER,
        out=tmp_path / "run",
    )
    assert finished.metrics == result.metrics


def test_the_widths_of_the_plan_are_checked_too(digits):
    class Interval(torch.nn.Module):
        """Computes something else at widths that no trial cut has."""

        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = torch.nn.Linear(64, 12), torch.nn.Linear(12, 10)

        def forward(self, x):
            hidden = self.fc1(x.flatten(1)).relu()
            return self.fc2(torch.tanh(hidden) if 2 < hidden.shape[1] < 6 else hidden)

    torch.manual_seed(0)
    net = Interval().eval()
    images = torch.rand(60, 1, 8, 8)
    data = TensorDataset(images, net(images).argmax(1))
    options = {"gate": "point", "policy": "uniform", "recovery": "none", "lossless": False}
    limits = Constraints(max_accuracy_drop=90)
    with pytest.raises(ValueError, match=r"not exact at its widths.*tanh"):
        prune(net, data=data, constraints=limits, rates=[2 / 3], **options)
    assert prune(net, data=data, constraints=limits, rates=[1 / 4], **options).plan.groups


def test_refused_groups_are_reported(digits):
    class WrittenIn(torch.nn.Module):
        """Its forward insists on its hidden width."""

        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = torch.nn.Linear(64, 12), torch.nn.Linear(12, 12)
            self.fc3 = torch.nn.Linear(12, 10)

        def forward(self, x):
            hidden = self.fc1(x.flatten(1)).relu()
            if hidden.shape[1] != 12:
                raise ValueError("12 channels are needed")
            return self.fc3(self.fc2(hidden).relu())

    torch.manual_seed(0)
    net = WrittenIn().eval()
    images = torch.rand(30, 1, 8, 8)
    labels = net(images).argmax(1)
    result = prune(
        net,
        data=TensorDataset(images, labels),
        constraints=Constraints(max_accuracy_drop=50, min_memory_saving=0.9),
        rates=(0.1, 0.3),
        gate="point",
        **PAPER,
    )
    assert not result.metrics.met  # fc1 has 780 of 1,066 parameters, 130 are those of fc3
    assert re.search(
        r" 73% of the parameters are in groups that could not be cut, .*because fc1: .*12 channels",
        result.metrics.verdict,
    )
    assert [refusal.group for refusal in result.refusals] == ["fc1"]
    assert any("fc1" in note and "Refused" in note for note in result.metrics.notes)
    assert "fc1" not in result.plan.groups
    with pytest.raises(ValueError, match="fc1"):
        prune(net, data=TensorDataset(images, labels), include=["fc1"])


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"include": ["nothing.*"]}, r"nothing\.\*.*nearest: "),
        ({"exclude": ["*.block9*"]}, r"block9.*nearest: "),
        ({"include": ["head"]}, "head.*output"),
        ({"exclude": ["*"]}, "leave no channel group"),
        ({"include": "*.mlp.*"}, "list of globs"),
        ({"gate": "luck"}, "gate: 'luck', input should be 'point' or 'bound'"),
        ({"policy": "prime", "policy_options": {"reading": "C"}}, "policy prime: reading: 'C'"),
        ({"policy": "prime", "policy_options": {"rounds": 1}}, "prime: rounds: unknown field"),
        ({"polcy": "prime"}, "unknown option 'polcy'; did you mean policy"),
        ({"preset": "paper", "gate": "bound"}, "preset paper means gate point, not bound"),
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"importance": "l3"}, "unknown importance 'l3'; known: obs"),
        ({"recovery": "magic"}, "unknown recovery 'magic'"),
        ({"order": "name"}, "order: 'name', input should be 'producer' or 'group'"),
        ({"preset": "paper2"}, "unknown preset 'paper2'"),
        ({"rates": [0.5, 1.0]}, "rates must lie between 0 and 1"),
        ({"level": 1.0}, "level: 1.0, input should be less than 1"),
        ({"device": "abacus"}, "'abacus'"),
        ({"constraints": Constraints(max_accuracy_drop=100)}, "100.*only 100"),
        ({"constraints": Constraints(min_memory_saving="9MB")}, "9MB"),
        ({"data": None}, "either data= .* or score="),
        ({"score": len}, "either data= .* or score="),
        ({"from_run": "gone"}, "no probes in 'gone'"),
    ],
)
def test_mistakes_write_nothing(model, digits, tmp_path, options, phrase):
    asked = {"data": digits, "out": tmp_path / "run", "rates": (0.5,), "verify": False} | options
    with pytest.raises(ValueError, match=phrase) as refusal:
        prune(model, **asked)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_score_that_never_runs_the_model(model):
    with pytest.raises(ValueError, match="example_input="):
        prune(model, score=lambda m: 1.0, gate="point", constraints=FREE)


def test_class_count_that_does_not_fit(model):
    data = TensorDataset(torch.rand(30, 1, 8, 8), torch.full((30,), 12))
    with pytest.raises(ValueError, match="label 12"):
        prune(model, data=data)


def test_folder_of_another_recipe_model_or_content(pruned, model, digits, tmp_path):
    folder = tmp_path / "run"
    options = {"include": SOME[:1], "rates": (0.5,), "out": folder}
    first = run(model, digits, **options)
    assert run(model, digits, **options).plan == first.plan
    with pytest.raises(
        ValueError, match=r"another recipe: method.rates is \[0.5\] there and \[0.6\]"
    ):
        run(model, digits, **(options | {"rates": (0.6,)}))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.fc.bias[0] += 1
    with pytest.raises(ValueError, match="another model"):
        run(other, digits, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        run(model, digits, out=tmp_path / "full")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        run(model, digits, out=tmp_path / "file" / "run")


def test_solving_again_makes_no_layer_probe(pruned, model, digits, tmp_path):
    pruned.save(tmp_path / "first")
    limits = Constraints(max_accuracy_drop=4, min_memory_saving=None)
    fresh = run(model, digits, constraints=limits)
    again = run(
        model, digits, constraints=limits, from_run=tmp_path / "first", out=tmp_path / "second"
    )
    assert again.plan == fresh.plan
    rows = [json.loads(x) for x in (tmp_path / "second/sensitivity.jsonl").read_text().splitlines()]
    old = [json.loads(x) for x in (tmp_path / "first/sensitivity.jsonl").read_text().splitlines()]
    assert rows[: len(old)] == old
    assert all(row["kind"] == "walk" for row in rows[len(old) :])
    with pytest.raises(ValueError, match=r"no probe of .* at rate 0.45"):
        run(model, digits, rates=(0.45,), from_run=tmp_path / "first")
    with pytest.raises(ValueError, match="another batch size"):
        run(model, digits, batch_size=7, from_run=tmp_path / "first")


def test_unpaired_real_valued_outcomes(model, digits):
    images = torch.stack([image for image, _ in digits.selection])

    def score(network):
        with torch.no_grad():
            return network(images).softmax(1).max(1).values

    result = prune(
        model,
        score=score,
        constraints=Constraints(max_accuracy_drop=0.2, min_memory_saving=None),
        include=SOME,
        rates=RATES,
        **PAPER,
    )
    assert result.metrics.drop < result.metrics.bound <= 0.2
    assert np.isfinite(result.metrics.bound)

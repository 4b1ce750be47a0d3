"""A plan says in original indices what was kept, and can be replayed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from primesvt.channels import remove_channels
from primesvt.channels.plan import Plan, PlanStep, apply_plan
from primesvt.data.digest import data_digest
from primesvt.importance import CriterionContext, keep
from primesvt.importance.magnitude import l2
from primesvt.models import create_model
from primesvt.models.digest import model_digest

QK = "blocks.block4_0.attn.q+k"


def plan_for(model, graph, name, count):
    group = graph[name]
    kept = keep(l2(CriterionContext(model=model, graph=graph), group), count)
    step = PlanStep(
        group=name,
        rate=0.5,
        before=(group.positions, group.size),
        after=(group.positions, count),
        accuracy=0.9,
        drop=0.01,
        bound=None,
        saving=0.1,
        parameter_bytes=10,
    )
    return Plan(
        model_hash=model_digest(model),
        config=model.config.to_dict(),
        inputs=({"shape": [1, 1, 8, 8], "dtype": "float32"},),
        steps=(step,),
        groups={name: tuple(map(tuple, graph.to_original(name, kept)))},
    )


def test_there_and_back(model, graph, tmp_path):
    plan = plan_for(model, graph, QK, 4)
    assert len(plan.groups[QK]) == 4
    assert Plan.load(plan.save(tmp_path / "plan.json")) == plan
    assert Plan.load(tmp_path) == plan


def test_a_plan_says_whether_something_made_up_for_its_cuts(model, graph):
    plan = plan_for(model, graph, QK, 4)
    assert not plan.recovered
    refitted = replace(plan.steps[0], recovery="batch norm only")
    assert Plan.from_dict(replace(plan, steps=(refitted,)).to_dict()).recovered


def test_replay_equals_the_cut(model, graph):
    plan = plan_for(model, graph, QK, 4)
    by_hand = copy.deepcopy(model)
    evidence = CriterionContext(model=model, graph=graph)
    remove_channels(by_hand, graph, {QK: keep(l2(evidence, graph[QK]), 4)})
    small = apply_plan(model, plan)
    assert small[QK].size == 4
    state = by_hand.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_plan_of_another_network_names_the_group(model, graph):
    plan = plan_for(model, graph, QK, 4)
    other = create_model("sdt_v2_digits", embed_dims=(16, 16, 32, 48))
    with pytest.raises(ValueError, match=r"4 x 10 channels in .*q\+k, but this model has 4 x 12"):
        apply_plan(other, plan)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda c: c.update(format=9), "format 9"),
        (lambda c: c.pop("steps"), "damaged"),
        (lambda c: c["steps"][0].pop("rate"), "damaged"),
        (lambda c: c.update(groups=3), "damaged"),
    ],
)
def test_damaged_plans(model, graph, tmp_path, change, phrase):
    content = json.loads(json.dumps(plan_for(model, graph, QK, 4).to_dict()))
    change(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=phrase):
        Plan.load(tmp_path)


def test_no_plan(tmp_path):
    with pytest.raises(ValueError, match="no plan"):
        Plan.load(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        Plan.load(tmp_path / "plan.json")


def test_digest_sees_every_tensor_and_the_config(model):
    digest = model_digest(model)
    assert digest == model_digest(copy.deepcopy(model))
    with torch.no_grad():
        model.head.fc.bias[3] += 1e-3
    changed = model_digest(model)
    model.get_buffer("blocks.down1a.bn.running_mean")[0] += 1
    assert len({digest, changed, model_digest(model)}) == 3


def test_data_digest(digits):
    assert data_digest(digits.selection) == data_digest(digits.selection)
    assert data_digest(digits.selection) != data_digest(digits.test)

    class Shaken(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.from_numpy(np.random.default_rng().random(3)), 0

    with pytest.raises(ValueError, match="without random augmentation"):
        data_digest(Shaken())

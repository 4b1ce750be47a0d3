"""What is saved comes back bit for bit, without pickle, in a fresh process too."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from primesvt.channels import remove_channels, trace
from primesvt.channels.plan import Plan, PlanStep, apply_plan
from primesvt.checkpoint.folder import load, save_model
from primesvt.models import create_model

EXAMPLE = ({"shape": [1, 1, 8, 8], "dtype": "float32"},)


def cut(model, graph, *, streams=False):
    """Half of every second group, from the top, and the plan that says so."""
    kinds = {"channel", "stream"} if streams else {"channel"}
    groups = [g for g in graph if g.status == "free" and g.kind in kinds and g.size > 1][::2]
    kept = {
        g.name: tuple(tuple(range(g.size - g.size // 2, g.size)) for _ in range(g.positions))
        for g in groups
    }
    steps = tuple(
        PlanStep(
            group=g.name,
            rate=0.5,
            before=(g.positions, g.size),
            after=(g.positions, g.size - (g.size - g.size // 2)),
            accuracy=1.0,
            drop=0.0,
            bound=None,
            saving=0.0,
            parameter_bytes=1,
        )
        for g in groups
    )
    remove_channels(model, graph, kept)
    return Plan(model_hash="", config=None, inputs=EXAMPLE, steps=steps, groups=kept)


def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("streams", [False, True])
def test_pruned_registry_model(model, graph, tmp_path, streams):
    plan = cut(model, graph, streams=streams)
    save_model(model, tmp_path, plan=plan)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = load(tmp_path)
    assert not again.training
    assert torch.equal(again(images()), model(images()))
    assert again.blocks.block4_0.mlp.fc1.conv.out_channels == len(
        again.blocks.block4_0.mlp.fc1.bn.weight
    )


def test_time_steps_and_dtype_stay(model, graph, tmp_path):
    plan = cut(model, graph)
    model.double()
    model.time_steps = 3
    save_model(model, tmp_path, plan=plan)
    again = load(tmp_path)
    assert again.time_steps == 3
    assert torch.equal(again(images().double()), model(images().double()))


def test_unpruned_model_needs_no_plan(model, tmp_path):
    save_model(model, tmp_path / "model")
    assert torch.equal(load(tmp_path)(images()), model(images()))


def test_model_pruned_twice(model, graph, tmp_path):
    save_model(model, tmp_path / "a", plan=cut(model, graph))
    once = load(tmp_path / "a")
    plan = cut(once, trace(once, images()))
    save_model(once, tmp_path / "b", plan=plan)
    assert torch.equal(load(tmp_path / "b")(images()), once(images()))


def test_distillation_head(tmp_path):
    torch.manual_seed(0)
    model = create_model("sdt_v2_digits", distillation=True).eval()
    plan = cut(model, trace(model, images()))
    save_model(model, tmp_path, plan=plan)
    assert torch.equal(load(tmp_path)(images()), model(images()))


def test_same_logits_in_a_fresh_process_without_pickle(model, graph, tmp_path):
    save_model(model, tmp_path / "model", plan=cut(model, graph))
    torch.set_num_threads(1)
    logits = model(images())
    code = (
        "import pickle, sys, torch\n"
        "def no(*a, **k): raise AssertionError('pickle')\n"
        "import primesvt; primesvt.load\n"
        "pickle.load = pickle.loads = torch.load = no\n"
        "torch.set_num_threads(1)\n"
        f"m = primesvt.load({str(tmp_path)!r})\n"
        "x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))\n"
        "with torch.no_grad(): print(m(x).numpy().tobytes().hex())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == logits.detach().numpy().tobytes().hex()


def test_foreign_module_is_replayed_into_a_fresh_instance(own_net, tmp_path):
    fresh = copy.deepcopy(own_net)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    graph = trace(own_net, images())
    plan = cut(own_net, graph)
    save_model(own_net, tmp_path, plan=plan)
    with pytest.raises(ValueError, match=r"OwnNet.*into=MyNet\(\)"):
        load(tmp_path)
    again = load(tmp_path, into=fresh)
    assert again is fresh
    assert torch.equal(again.shift, own_net.shift)  # not in the file: the right ones were kept
    assert torch.equal(again(images()), own_net(images()))


def test_shared_tensors_are_saved_under_both_names(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    tied = Tied()
    save_model(tied, tmp_path)
    again = load(tmp_path, into=Tied())
    assert again.a.weight is again.b.weight
    assert torch.equal(again.a.weight, tied.a.weight)


def test_registry_model_takes_no_into(model, tmp_path):
    save_model(model, tmp_path)
    with pytest.raises(ValueError, match="without into"):
        load(tmp_path, into=nn.Identity())


def _shorten(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _edit(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "phrase"),
    [
        (_shorten, "cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut short"),
        (lambda f: (f / "model.safetensors").unlink(), r"no .*model\.safetensors"),
        (lambda f: (f / "config.json").unlink(), "no saved model"),
        (lambda f: (f / "config.json").write_text("{"), "no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "format None"),
        (_edit(format=2), "format 2"),
        (_edit(config={"family": "none"}), "unknown family"),
        (_edit(config={"family": "sdt_v2", "colour": 1}), "colour"),
        (_edit(config=create_model("sdt_v2_small").config.to_dict()), "does not fit together"),
        (_edit(inputs=[]), "does not fit"),
    ],
)
def test_damaged_folders_say_so_in_one_line(model, graph, tmp_path, damage, phrase):
    save_model(model, tmp_path, plan=cut(model, graph))
    damage(tmp_path)
    with pytest.raises(ValueError, match=phrase) as refusal:
        load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_state_that_is_no_tensor(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": object()}

    with pytest.raises(ValueError, match="_extra_state"):
        save_model(Odd(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_apply_plan_on_other_weights(graph):
    torch.manual_seed(3)
    other = create_model("sdt_v2_digits").eval()
    plan = cut(copy.deepcopy(other), graph)
    small = apply_plan(other, plan)
    for step in plan.steps:
        np.testing.assert_array_equal(small.original(step.group), plan.groups[step.group])


class Noted(nn.Linear):
    """A layer that keeps something beside its tensors."""

    about: Any = None

    def get_extra_state(self) -> Any:
        return self.about

    def set_extra_state(self, state: Any) -> None:
        self.about = state


def test_what_a_module_keeps_beside_tensors_comes_back(tmp_path: Path) -> None:
    layer = Noted(2, 1)
    layer.about = {"scale": 0.5, "names": ["a", "b"]}
    save_model(layer, tmp_path / "model")
    found = load(tmp_path / "model", into=Noted(2, 1))
    assert found.about == layer.about and torch.equal(found.weight, layer.weight)


@pytest.mark.parametrize("about", [object(), {1: 2}, float("nan"), (1, 2)])
def test_what_json_does_not_give_back_is_refused(tmp_path: Path, about: Any) -> None:
    layer = Noted(2, 1)
    layer.about = about
    with pytest.raises(ValueError, match="'_extra_state', no tensor and no plain value"):
        save_model(layer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [{"shape": [10**9, 10**9], "dtype": "float32"}]},
        {"inputs": [{"shape": [-1], "dtype": "float32"}]},
        {"inputs": [{"shape": [1], "dtype": "nn"}]},
        {"time_steps": "many"},
        {"time_steps": 10**9},
        {"config": {"family": ["sdt_v2"]}},
        {"config": {"family": "sdt_v2", "depths": "deep"}},
        {"provenance": {"data": 3}},
        {"plan": 3},
    ],
)
def test_a_config_with_other_values_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(create_model("sdt_v2_digits"), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)

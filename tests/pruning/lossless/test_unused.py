"""Dead parameters and distillation heads: taken out exactly, and loaded again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from primesvt.calibration import calibration_of
from primesvt.checkpoint.folder import load, save_model
from primesvt.models import SpikingViT
from primesvt.models.heads import SpikingHead
from primesvt.profiling.memory import parameter_bytes, parameter_count
from primesvt.pruning.lossless import remove_unused

from .conftest import answer, fired, picture


def test_merged_head_is_exact():
    torch.manual_seed(0)
    head = SpikingHead(12, 10, distillation=True).double().eval()
    model = fired("sdt_v2_digits", distillation=True).double()
    x = picture(model).double()
    merged = remove_unused(model, [calibration_of(x)])
    assert merged.merged_head and merged.model.head.fc_kd is None
    before, after = answer(model, x), answer(merged.model, x)
    assert float(before.std()) > 0
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert model.head.fc_kd is not None  # the model given is not changed
    assert head.fc_kd is not None
    classifier = model.head.fc
    assert parameter_count(model) - parameter_count(merged.model) == sum(
        p.numel() for p in classifier.parameters()
    )


def test_a_head_of_two_signals_is_not_merged():
    model = fired("sdt_v3_large_small", distillation=True)
    assert not remove_unused(model).merged_head
    assert remove_unused(model).model.head.fc_kd is not None


def test_a_head_that_changes_a_prediction_stays_double(monkeypatch):
    from primesvt.pruning.lossless import step

    model = fired("sdt_v2_digits", distillation=True)
    monkeypatch.setattr(step, "_alike", lambda *_: False)
    assert not remove_unused(model, [calibration_of(picture(model))]).merged_head


@pytest.mark.parametrize("name", ["spikformer_digits", "sdt_v1_digits", "spikingformer_digits"])
def test_dead_parameters_go_and_the_model_loads_again(name, tmp_path):
    model = fired(name)
    x = picture(model)
    dead = [n for n, _ in model.named_parameters() if ".unused." in n]
    assert dead
    stripped = remove_unused(model)
    small = stripped.model
    assert stripped.dead_parameters == sum(model.get_parameter(n).numel() for n in dead)
    assert stripped.dead_parameters == parameter_count(model) - parameter_count(small)
    assert torch.equal(answer(small, x), answer(model, x))
    save_model(small, tmp_path)
    again = load(tmp_path)
    assert torch.equal(answer(again, x), answer(model, x))
    assert again.state_dict().keys() == small.state_dict().keys()
    assert parameter_bytes(again) == parameter_bytes(small)
    assert again.config == model.config


def test_whole_models_load_whole(tmp_path):
    for name in ("spikformer_digits", "sdt_v1_digits"):
        model = fired(name)
        save_model(model, tmp_path / name)
        assert load(tmp_path / name).state_dict().keys() == model.state_dict().keys()


def test_merged_model_loads_again(tmp_path):
    model = fired("sdt_v2_digits", distillation=True)
    merged = remove_unused(model).model
    save_model(merged, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["distillation"] is True
    again = load(tmp_path)
    assert again.head.fc_kd is None
    assert torch.equal(answer(again, picture(model)), answer(merged, picture(model)))
    save_model(again, tmp_path / "again")
    assert load(tmp_path / "again").head.fc_kd is None


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("spikformer_digits", "blocks.block0.unused.norm1.weight"),
        ("sdt_v2_digits", "head.fc_kd.bias"),
    ],
)
def test_a_file_that_lacks_only_a_part_is_refused(name, lost, tmp_path):
    options = {"distillation": True} if name == "sdt_v2_digits" else {}
    save_model(fired(name, **options), tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state[lost]
    save_file(state, path)
    with pytest.raises(ValueError, match=rf"1 missing \({lost}"):
        load(tmp_path)


def test_what_others_call_unused_is_theirs():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.unused(x)

    class Sub(SpikingViT):
        """A registry model that computes something else."""

    own = Own()
    assert remove_unused(own).dead_parameters == 0
    model = fired("spikformer_digits")
    model.__class__ = Sub
    assert remove_unused(model).dead_parameters == 0

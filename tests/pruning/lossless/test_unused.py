"""Dead parameters and distillation heads: taken out exactly, and loaded again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from primesvt import Limits, prune
from primesvt.calibration import calibration_of
from primesvt.channels.plan import apply_plan
from primesvt.checkpoint.folder import load, save_model
from primesvt.models import SpikingViT
from primesvt.models.families._sdt_v3_large_network import RepConv
from primesvt.models.heads import SpikingHead
from primesvt.models.strip import mergeable_chains
from primesvt.profiling.memory import parameter_bytes, parameter_count
from primesvt.pruning.lossless import LosslessRecord, remove_unused

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
        ("sdt_v3_large_small", "blocks.block3_0.attn.q.inner.bn.bias"),
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


def chained(name: str = "sdt_v3_large_small", **options: object) -> SpikingViT:
    """SDT-V3 large with norms that shift and scale, in double precision."""
    model = fired(name, **options).double()
    draw = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.bias, -0.2)):
                tensor.data += torch.rand(tensor.shape, generator=draw) * 0.4 + low
            for tensor in (module.running_var, module.weight):
                tensor.data *= torch.rand(tensor.shape, generator=draw) * 0.5 + 0.75
    return model


def test_layers_without_a_neuron_between_are_merged_exactly(tmp_path):
    model = chained()
    x = picture(model).double()
    stripped = remove_unused(model, [calibration_of(x)])
    blocks = [name for name, _ in model.blocks.named_children() if name.startswith("block3")]
    pairs = {f"blocks.{block}.attn.{part}" for block in blocks for part in ("q", "k", "v", "proj")}
    assert pairs <= set(stripped.merged_chains) and not stripped.kept_chains
    assert not mergeable_chains(stripped.model)
    short = parameter_count(model) - parameter_count(stripped.model) - stripped.dead_parameters
    assert stripped.chain_parameters == short > 0.2 * parameter_count(model)
    currents = [currents_of(each, x) for each in (model, stripped.model)]
    assert currents[0].keys() == currents[1].keys()
    for name, current in currents[0].items():
        assert float(current.std()) > 0, name
        torch.testing.assert_close(currents[1][name], current, rtol=1e-12, atol=1e-12)
    save_model(stripped.model, tmp_path)
    again = load(tmp_path)
    assert torch.equal(answer(again, x), answer(stripped.model, x))
    assert again.state_dict().keys() == stripped.model.state_dict().keys()


def test_a_file_without_the_inner_layers_of_a_pair_that_was_not_merged_is_refused(tmp_path):
    save_model(chained(), tmp_path)
    path = tmp_path / "model.safetensors"
    state = {n: t for n, t in load_file(path).items() if ".attn.q.inner." not in n}
    save_file(state, path)
    with pytest.raises(ValueError, match="does not fit the config beside it"):
        load(tmp_path)


def currents_of(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every pair of layers gives to the neuron behind it."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, module in model.named_modules()
        if isinstance(module, RepConv)
    ]
    answer(model, x)
    for handle in handles:
        handle.remove()
    return found


def test_pairs_that_change_a_prediction_stay_two(monkeypatch):
    from primesvt.pruning.lossless import step

    model = chained()
    wrong = mergeable_chains(model)[1]

    def spoils(network, path, real=step.merge_chain):
        real(network, path)
        if path == wrong:
            network.get_submodule(path).outer.conv.weight.data.neg_()

    monkeypatch.setattr(step, "merge_chain", spoils)
    monkeypatch.setattr(step, "TOLERANCE", 1e-12)
    monkeypatch.setattr(step, "_answer", lambda result: [result.detach()])
    stripped = remove_unused(model, [calibration_of(picture(model).double())])
    assert stripped.kept_chains == (wrong,)
    assert mergeable_chains(stripped.model) == (wrong,)


def test_a_pair_that_one_layer_would_not_make_smaller_stays():
    model = fired("sdt_v3_large_small")
    path = mergeable_chains(model)[0]
    pair = model.get_submodule(path)
    pair.inner.conv.weight = nn.Parameter(pair.inner.conv.weight[:1])
    pair.inner.bn = nn.BatchNorm1d(1)
    pair.outer.conv.weight = nn.Parameter(pair.outer.conv.weight[:, :1])
    assert path not in mergeable_chains(model)


def test_a_run_merges_first_and_says_so(tmp_path):
    model = chained().float()
    x = picture(model)
    target = answer(model, x).argmax(1)
    result = prune(
        model,
        score=lambda network: answer(network, x).argmax(1) == target,
        constraints=Limits(max_accuracy_drop=0.99, min_memory_saving=None),
        gate="point",
        include=["*mlp.fc1"],
        rates=(0.5,),
        verify=False,
        out=tmp_path / "run",
    )
    account = result.metrics.lossless
    pairs = len(account.merged_chains)
    assert pairs and f"of {pairs} pairs of linear layers" in account.notes[0]
    again = load(tmp_path / "run")
    assert again.state_dict().keys() == result.model.state_dict().keys()
    assert not any(".q.inner." in name for name in again.state_dict())
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())["lossless"]
    assert LosslessRecord.from_dict(stored) == account
    apply_plan(model, result.plan)  # the network given keeps its pairs
    assert mergeable_chains(model) == account.merged_chains

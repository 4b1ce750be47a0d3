"""The costs of a network, in a run and in its files."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from primesvt import Constraints, create_model, prune
from primesvt.calibration import calibration_of
from primesvt.checkpoint.folder import save_model
from primesvt.data import load_data
from primesvt.profiling.energy import energy_of
from primesvt.profiling.memory import file_bytes, parameter_bytes
from primesvt.profiling.operations import count_operations
from primesvt.profiling.timing import Pace, measure
from primesvt.pruning import metrics as metrics_module
from primesvt.pruning.metrics import Costs, Metrics, costs_of

FIELDS = {"file_bytes", "operations", "energy", "latency"}  # that earlier versions did not have


def few():
    """Splits that are measured at once; costs do not depend on what is on the images."""
    whole = load_data("digits")
    return dataclasses.replace(
        whole,
        calibration=Subset(whole.calibration, range(64)),
        selection=Subset(whole.selection, range(60)),
        test=Subset(whole.test, range(40)),
    )


ASKED = {
    "constraints": Constraints(max_accuracy_drop=90, min_memory_saving=None),
    "include": ["*.block4_0.mlp.fc1"],
    "rates": [0.5],
    "batch_size": 32,
    "verify": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs") / "run"
    model = create_model("sdt_v2_digits", pretrained=True)
    result = prune(model, data=few(), out=folder, **ASKED)
    return model, result, folder


def test_a_run_has_the_costs_of_both_networks(run):
    model, result, _ = run
    before, after = result.metrics.before, result.metrics.after
    inputs = calibration_of(few().calibration, batch_size=32)
    for network, costs in ((model, before), (result.model, after)):
        assert costs.operations == count_operations(network, inputs)
        assert costs.operations.samples == 64  # two whole batches
        assert costs.energy == energy_of(costs.operations, parameter_bytes(network))
        assert costs.latency == ()
    # 80 of 160 hidden channels, over 16 tokens and two time steps, in front of and behind them
    assert before.operations.macs - after.operations.macs == 2 * 80 * 40 * 16 * 2
    assert after.operations.synops < before.operations.synops
    assert after.energy.operations < before.energy.operations
    assert before.operations.multiplied == after.operations.multiplied


def test_the_file_has_the_size_that_is_said(run, tmp_path):
    model, result, folder = run
    assert result.metrics.after.file_bytes == (folder / "model/model.safetensors").stat().st_size
    save_model(model, tmp_path)
    assert result.metrics.before.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    tied = nn.Sequential(nn.Linear(4, 4, bias=False))
    tied.append(tied[0])
    save_model(tied, tmp_path / "tied")
    assert file_bytes(tied) == (tmp_path / "tied/model.safetensors").stat().st_size


def test_figures_come_back_from_the_file(run):
    _, result, folder = run
    content = json.loads((folder / "metrics.json").read_text())
    assert Metrics.from_dict(content) == result.metrics


def test_files_of_earlier_versions_load(run):
    _, result, folder = run
    content = json.loads((folder / "metrics.json").read_text())
    for when in ("before", "after"):
        content[when] = {k: v for k, v in content[when].items() if k not in FIELDS}
    old = Metrics.from_dict(content)
    without = dict.fromkeys(FIELDS) | {"latency": ()}
    assert old.after == dataclasses.replace(result.metrics.after, **without)


def test_latency_only_when_asked_for(monkeypatch):
    quick = partial(measure, pace=Pace(seconds=0, least=1, tick=0))
    monkeypatch.setattr(metrics_module, "measure", quick)
    model = create_model("sdt_v2_digits", pretrained=True)
    result = prune(model, data=few(), latency=True, **ASKED)
    for costs in (result.metrics.before, result.metrics.after):
        assert [each.batch for each in costs.latency] == [1, 32]
        assert all(0 < each.low <= each.milliseconds <= each.high for each in costs.latency)
    assert Metrics.from_dict(json.loads(json.dumps(result.metrics.to_dict()))) == result.metrics


def test_without_calibration_inputs_the_example_is_counted():
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    costs = costs_of(net, (torch.rand(5, 4),))
    assert costs.operations.samples == 5 and costs.operations.macs == 18
    assert math.isclose(costs.energy.operations, 18 * 4.6e-12)
    assert Costs.from_dict(dataclasses.asdict(costs)) == costs

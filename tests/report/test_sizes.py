"""Parameters by block are those of the model, before and after."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch import nn

from primesvt.checkpoint.folder import load, save_model
from primesvt.models import create_model
from primesvt.report.names import block_of
from primesvt.report.run_files import read_run
from primesvt.report.sizes import block_sizes

from .runs import costs, metrics_of, whole_run, write_run


def by_block(model):
    found = Counter()
    for name, parameter in model.named_parameters():
        found[block_of(name)] += parameter.numel()
    return dict(found)


def test_blocks_hold_what_the_models_hold(tmp_path):
    folder = whole_run(tmp_path / "run")
    found = block_sizes(read_run(folder))
    assert {each.block: each.before for each in found} == by_block(create_model("sdt_v2_digits"))
    assert {each.block: each.after for each in found} == by_block(load(folder))
    changed = {each.block for each in found if each.before != each.after}
    assert changed == {"block4_0", "conv2a"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_figures_that_do_not_add_up_are_not_shown(tmp_path, when):
    folder = whole_run(tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics[when]["parameters"] += 1
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert block_sizes(read_run(folder)) == []


def test_a_module_given_in_python_has_only_an_after(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    metrics = metrics_of(after=costs(4 * (15 + 6 + 8), 0.9, None))
    folder = write_run(tmp_path / "run", metrics=metrics, plan={"config": None})
    save_model(net, folder / "model")
    found = block_sizes(read_run(folder))
    assert [(each.block, each.before, each.after) for each in found] == [
        ("0", None, 15),
        ("1", None, 6),
        ("2", None, 8),
    ]


def test_without_a_model_there_are_no_blocks(tmp_path):
    assert block_sizes(read_run(write_run(tmp_path / "run"))) == []


def test_no_tensor_is_read(tmp_path, monkeypatch):
    folder = whole_run(tmp_path / "run")
    monkeypatch.setattr(torch, "load", None)
    path = folder / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100:] = bytes(100)
    path.write_bytes(content[:-100])
    assert block_sizes(read_run(folder))

"""Memory is counted in what is really there, before and after a real cut."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from primesvt.channels import remove_channels
from primesvt.profiling.layers import group_bytes, group_parameters, inventory
from primesvt.profiling.memory import (
    buffer_bytes,
    membrane_bytes,
    parameter_bytes,
    peak_activation_bytes,
)


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 3, bias=False)
    assert parameter_bytes(nn.Sequential(layer, layer)) == 36
    assert parameter_bytes(nn.Linear(3, 3, bias=False).double()) == 72
    assert buffer_bytes(nn.BatchNorm1d(3)) == 2 * 12 + 8


def test_every_layer_is_listed_with_a_group_or_a_reason(model, graph):
    rows = {row.layer: row for row in inventory(model, graph)}
    weights = [n for n, p in model.named_parameters() if p.dim() > 1]
    assert set(rows) == {name.rpartition(".")[0] for name in weights}
    assert all(row.prunable != bool(row.reason) for row in rows.values())
    standing = {row.group for row in rows.values() if row.prunable}
    assert standing == {group.name for group in graph.prunable()}
    assert rows["head.fc"].reason == "reaches the model's output"
    assert rows["blocks.down4.conv"].reason == "writes only a residual stream"
    assert rows["blocks.conv1a.sep.dw"].reason == "goes with blocks.conv1a.sep.pw1"


def test_freed_bytes_are_those_of_a_real_cut(model, graph):
    """Removing one channel per position frees an equal share of what removing all would."""
    for group in graph.prunable():
        smaller = copy.deepcopy(model)
        rows = np.tile(np.arange(group.size - 1), (group.positions, 1))
        remove_channels(smaller, graph, {group.name: rows})
        freed = parameter_bytes(model) - parameter_bytes(smaller)
        assert freed * group.size == group_bytes(model, graph, group), group.name


def test_size_of_a_layer_in_both_readings(model, graph):
    group = graph["blocks.block4_0.mlp.fc1"]
    fc1, fc2 = (model.get_parameter(f"blocks.block4_0.mlp.{n}.conv.weight") for n in ("fc1", "fc2"))
    assert group_parameters(model, graph, group) == fc1.numel() + 160  # and its bias
    everything = group_parameters(model, graph, group, members=True)
    assert everything == fc1.numel() + fc2.numel() + 3 * 160  # bias and batch norm
    tied = graph["blocks.block4_0.attn.q+k"]
    q, k = (model.get_parameter(f"blocks.block4_0.attn.{n}.outer.weight") for n in "qk")
    assert group_parameters(model, graph, tied) == q.numel() + k.numel()


def test_membranes_per_sample_do_not_depend_on_batch_or_time(model, own_net):
    example = (torch.rand(3, 1, 8, 8),)
    once = membrane_bytes(model, (example[0][:1],))
    assert membrane_bytes(model, example) == once
    model.time_steps = 5
    assert membrane_bytes(model, example) == once
    assert membrane_bytes(own_net, example) == 6 * 36 * 4
    assert own_net.lif.v == 0.0


def test_a_cut_model_has_fewer_membranes(model, graph):
    example = (torch.rand(1, 1, 8, 8),)
    before = membrane_bytes(model, example)
    remove_channels(model, graph, {"blocks.block4_0.mlp.fc1": np.arange(60)})
    tokens = before - membrane_bytes(model, example)
    assert tokens == 100 * 4 * 16  # 100 neurons at 4 x 4 places


@pytest.mark.parametrize(
    ("network", "peak"),
    [
        (nn.Linear(4, 100, bias=False), 400),
        (nn.Sequential(nn.Linear(4, 100, bias=False), nn.ReLU()), 800),
        (nn.Sequential(*(nn.ReLU() for _ in range(9))), 32),
    ],
)
def test_peak_of_activations(network, peak):
    assert peak_activation_bytes(network, (torch.zeros(1, 4),)) == peak

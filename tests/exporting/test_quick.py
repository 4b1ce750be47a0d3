"""A network for quick inference answers as the one that it was made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from primesvt import create_model, trace
from primesvt.channels import remove_channels
from primesvt.exporting.deploy import quick, simplify
from primesvt.exporting.packing import PackedConv2d, pack
from primesvt.models import list_models
from primesvt.models.blocks import ConvBN
from tests.exporting.test_folding import Shortcut, shaken

SMALL = [name for name in list_models() if name.endswith("_digits")]


@pytest.mark.parametrize("name", SMALL)
def test_it_answers_like_the_model_and_leaves_it_alone(name):
    net = shaken(create_model(name))
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    keys = list(net.state_dict())
    with torch.no_grad():
        wanted = net(images)
        simplify(made := copy.deepcopy(net).requires_grad_(False), images)
        assert torch.allclose(made(images), wanted, rtol=1e-9, atol=1e-9)
    assert list(net.state_dict()) == keys


def test_it_has_no_norms_no_token_layers_and_channels_last():
    made = quick(create_model("sdt_v2_digits", pretrained=True), torch.rand(2, 1, 8, 8))
    kinds = {type(module) for module in made.modules()}
    assert kinds.isdisjoint({nn.BatchNorm1d, nn.BatchNorm2d, nn.Conv1d})
    convs = [m for m in made.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)


def test_pruned_networks_too():
    net = shaken(create_model("sdt_v2_digits"))
    graph = trace(net, torch.rand(2, 1, 8, 8))
    cuts = {g.name: np.tile(np.arange(1, g.size), (g.positions, 1)) for g in graph.prunable()}
    remove_channels(net, graph, cuts)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = net(images)
        simplify(made := copy.deepcopy(net).requires_grad_(False), images)
        assert torch.allclose(made(images), wanted, rtol=1e-9, atol=1e-9)


def test_grouped_and_strided_token_layers():
    net = shaken(ConvBN(4, 8, groups=2, dims=1, bias=True))
    x = torch.randn(2, 2, 4, 3, 5, dtype=torch.float64)
    wanted = net(x)
    simplify(net, x)
    assert isinstance(net.conv, nn.Conv2d)
    assert torch.allclose(net(x), wanted, rtol=1e-12, atol=1e-12)


def test_packed_convolutions_compute_what_the_plain_ones_do():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.Conv2d(6, 6, 5, groups=6, padding=2, bias=False)
    ).requires_grad_(False)
    images = torch.rand(2, 3, 9, 7)
    pack(packed := copy.deepcopy(net), images)
    assert {type(module) for module in packed} == {PackedConv2d}
    for size in (1, 2, 5):
        x = torch.rand(size, 3, 9, 7)
        assert torch.allclose(packed(x), net(x), atol=1e-6)
    assert torch.allclose(copy.deepcopy(packed)(images), net(images), atol=1e-6)


def test_without_onednn_convolutions_stay(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    net = nn.Sequential(nn.Conv2d(3, 6, 3)).requires_grad_(False)
    pack(net, torch.rand(1, 3, 8, 8))
    assert type(net[0]) is nn.Conv2d


def test_convolutions_that_cannot_be_packed_stay():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(6, 6, 3, padding=1))
    net[1].padding_mode = "reflect"
    pack(net.requires_grad_(False), torch.rand(1, 3, 8, 8))
    assert {type(module) for module in net} == {nn.Conv2d}


def test_event_frames_and_broken_weights():
    frames = torch.rand(3, 4, 1, 8, 8)
    model = create_model("sdt_v2_digits", pretrained=True)
    with torch.no_grad():
        assert quick(model, frames)(frames).shape == (3, 10)
        next(model.parameters()).fill_(torch.nan)
        assert quick(model, frames)(frames).shape == (3, 10)


def test_what_cannot_be_folded_is_said():
    with pytest.raises(ValueError, match=r"something else reads.*use the model as it is"):
        quick(shaken(Shortcut()).float(), torch.randn(2, 3, 4, 4))

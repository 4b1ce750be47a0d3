"""Which sums make a residual stream: shortcuts of blocks, not a layer added to its own input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from primesvt.channels import ChannelGraph, remove_channels, trace, verify


class Widened(nn.Module):
    """A layer, any shortcut inside its width, and a reader."""

    def __init__(self, inside: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.made = nn.Conv2d(3, width, 1)
        self.inside = inside
        self.read = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.inside(self.made(x)).relu())


class Shortcut(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.layers:
            out = layer(out.relu())
        return x + out


class Linear(nn.Module):
    """``x + W x`` on channels, with the weight on the left or on the right of the product."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        if self.left:
            return x + torch.matmul(self.weight, x.flatten(2)).view_as(x)
        return x + (x.permute(0, 2, 3, 1) @ self.weight.t()).permute(0, 3, 1, 2)


def conv(width: int = 8, groups: int = 1, out: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, groups=groups), nn.BatchNorm2d(out))


def kinds(model: nn.Module) -> tuple[ChannelGraph, dict[str, str]]:
    model = model.double().eval()
    graph = trace(model, torch.randn(2, 3, 4, 4).double())
    assert graph.notes == ()
    assert verify(model, graph) == []
    return graph, {g.name: g.kind for g in graph if g.status == "free"}


ONE_LAYER = {
    "convolution": lambda: Shortcut(conv()),
    "in groups": lambda: Shortcut(conv(groups=2)),
    "depthwise": lambda: Shortcut(conv(groups=8)),
    "twice": lambda: nn.Sequential(Shortcut(conv()), Shortcut(conv())),
    "linear": lambda: Linear(left=False),
    "linear, weight first": lambda: Linear(left=True),
}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_layer_added_to_its_own_input_is_one_wider_layer(name: str) -> None:
    torch.manual_seed(0)
    model = Widened(ONE_LAYER[name]())
    graph, found = kinds(model)
    assert set(found.values()) == {"channel"}, str(graph)
    (group,) = graph.prunable()
    kept = [[0, 2, 3]] if group.positions == 1 else [[0, 3], [1, 2]]
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {group.name: kept})
    rows = {i * group.size + c for i, row in enumerate(kept) for c in row}
    gone = torch.tensor(sorted(set(range(8)) - rows))
    for layer in masked.modules():  # whoever reads one of the eight channels is blind to it
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 8 and layer.groups == 1:
            layer.weight.data[:, gone] = 0
    for layer in masked.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 2:
            for channel in gone.tolist():
                block = slice(4 * (channel // 4), 4 * (channel // 4) + 4)
                layer.weight.data[block, channel % 4] = 0
        if isinstance(layer, Linear):
            layer.weight.data[:, gone] = 0
    x = torch.randn(2, 3, 4, 4).double()
    assert torch.allclose(pruned(x), masked(x), rtol=1e-9, atol=1e-12)


STREAMS = {
    "two layers": (lambda: Shortcut(conv(out=6), conv(6)), {"inside.layers:0"}),
    "two layers in groups": (
        lambda: Shortcut(conv(out=6, groups=2), conv(6, groups=2)),
        {"inside.layers:0"},
    ),
    "one layer, then two": (
        lambda: nn.Sequential(Shortcut(conv()), Shortcut(conv(out=6), conv(6))),
        {"inside.1.layers:0"},
    ),
    "two layers, then one": (
        lambda: nn.Sequential(Shortcut(conv(out=6), conv(6)), Shortcut(conv())),
        {"inside.0.layers:0"},
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_shortcut_of_a_block_is_a_stream(name: str) -> None:
    torch.manual_seed(0)
    make, inner = STREAMS[name]
    graph, found = kinds(Widened(make()))
    assert {n for n, kind in found.items() if kind == "channel"} == inner, str(graph)
    assert [kind for n, kind in found.items() if n not in inner] == ["stream"]
    assert {g.name for g in graph.prunable()} == inner


class Branches(nn.Module):
    """Two layers from the same input, added: neither was made of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.read = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read((self.a(x) + self.b(x)).relu())


def test_branches_that_meet_are_a_stream() -> None:
    assert kinds(Branches())[1] == {"a:stream": "stream"}

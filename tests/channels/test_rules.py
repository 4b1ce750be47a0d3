"""What single operators and layers do to channels: tied, read, frozen with a reason, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from primesvt.channels import ChannelGraph, remove_channels, trace, verify

from .firing import state_bytes

pytestmark = pytest.mark.quick


class Lambda(nn.Module):
    """A linear layer, any function of what it makes, and a linear reader."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6, out: int = 6) -> None:
        super().__init__()
        self.made, self.function = nn.Linear(4, width), function
        self.read = nn.Linear(out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.function(self.made(x).sigmoid()))


def traced(model: nn.Module, *shape: int) -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(*shape).double()
    model = model.double().eval()
    return model, trace(model, x), x


def blind(module: nn.Module, gone: Any, dim: int = 1) -> None:
    with torch.no_grad():
        module.weight.index_fill_(dim, torch.as_tensor(gone), 0.0)


def equal(pruned: nn.Module, masked: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        found, wanted = pruned(x), masked(x)
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


FROZEN: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "mean": (lambda t: t - t.mean(-1, keepdim=True), "aten::mean", "mean"),
    "var": (lambda t: t / t.var(-1, keepdim=True), "aten::var", "var"),
    "norm": (lambda t: t / t.norm(dim=-1, keepdim=True), "norm", "norm"),
    "amax": (lambda t: t - t.amax(-1, keepdim=True), "aten::amax", "amax"),
    "softmax": (lambda t: t.softmax(-1), "aten::_softmax", "softmax"),
    "layer norm": (lambda t: functional.layer_norm(t, t.shape[-1:]), "layer_norm", "layer norm"),
    "group norm": (lambda t: functional.group_norm(t, 2), "group_norm", "group norm"),
    "cumsum": (lambda t: t.cumsum(-1), "aten::cumsum", "order"),
    "sort": (lambda t: t.sort(-1)[0], "aten::sort", "order"),
    "topk": (lambda t: t + t.topk(2, -1)[0].sum(), "aten::topk", "order"),
    "flip": (lambda t: t.flip(-1), "aten::flip", "order"),
    "roll": (lambda t: t.roll(1, -1), "aten::roll", "order"),
    "index": (lambda t: t[:, torch.tensor([5, 4, 3, 2, 1, 0])], "aten::index", "number"),
    "index_select": (
        lambda t: t.index_select(1, torch.tensor([5, 4, 3, 2, 1, 0])),
        "aten::index_select",
        "",
    ),
    "item": (lambda t: t * float(t[0, 0]), "", ""),
    "max item": (lambda t: t * t.max().item(), "aten::max", "max"),
    "svd": (lambda t: t + torch.linalg.svdvals(t).sum(), "linalg", "no rule"),
    "fft": (lambda t: torch.fft.fft(t).real, "fft", "no rule"),
    "aminmax": (lambda t: t - t.aminmax().min, "aminmax", "no rule"),
    "unique": (lambda t: t + t.unique().sum(), "unique", "no rule"),
    "padded": (lambda t: functional.pad(t, (1, 0))[:, 1:], "constant_pad", "pad"),
    "window": (
        lambda t: t + functional.avg_pool1d(t[:, None], 3, 1, 1)[:, 0],
        "avg_pool",
        "pool",
    ),
    "convolved": (
        lambda t: t + functional.conv1d(t[:, None], torch.ones(1, 1, 3).to(t), padding=1)[:, 0],
        "convolution",
        "",
    ),
    "own matrix": (lambda t: t + torch.linalg.inv(t.T @ t + torch.eye(6).to(t)).sum(), "", ""),
}


@pytest.mark.parametrize("name", FROZEN)
def test_operators_that_mix_channels_freeze_them(name: str) -> None:
    function, operator, reason = FROZEN[name]
    model, graph, _ = traced(Lambda(function), 5, 4)
    group = graph["made"]
    assert group.status == "frozen", str(group)
    assert operator in group.reason
    assert reason in group.reason
    with pytest.raises(ValueError, match="'made' is frozen"):
        remove_channels(model, graph, {"made": [0, 1]})


PASSED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda t: t.relu(),
    "times itself": lambda t: t * t,
    "sum elsewhere": lambda t: t + t.sum(0, keepdim=True),
    "plain sum": lambda t: t * t.sum(-1, keepdim=True),
    "gram": lambda t: (t @ t.T) @ t,
    "einsum": lambda t: torch.einsum("bc,dc,de->be", t, t, t),
    "where": lambda t: torch.where(t > 0.5, t, torch.zeros_like(t)),
    "masked": lambda t: t.masked_fill(t > 0.5, 0.25),
    "clamped": lambda t: t.clamp(0.1, 0.9),
    "in place": lambda t: t.clone().mul_(2).add_(t),
    "expanded": lambda t: t.unsqueeze(1).expand(-1, 3, -1).sum(1),
    "stacked": lambda t: torch.stack([t, 2 * t]).sum(0),
    "batch softmax": lambda t: t.softmax(0),
    "batch sort": lambda t: t.T.flip(1).T,
    "loop": lambda t: sum(t.unbind(0))[None] + t,
    "buffer of zeros": lambda t: torch.zeros_like(t).copy_(t),
}


@pytest.mark.parametrize("name", PASSED)
def test_operators_that_keep_channels_apart(name: str) -> None:
    model, graph, x = traced(Lambda(PASSED[name]), 5, 4)
    assert graph["made"].prunable, str(graph["made"])
    assert verify(model, graph) == []
    kept, pruned, masked = [1, 2, 5], copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {"made": kept})

    def hide(_m: nn.Module, _a: Any, out: Tensor) -> Tensor:
        """Zero after the sigmoid is what every one of these readers ignores."""
        return out.index_fill(-1, torch.tensor([0, 3, 4]), -torch.inf)

    masked.made.register_forward_hook(hide)
    if name not in {"batch softmax", "masked", "clamped"}:  # these do not map zero to zero
        assert equal(pruned, masked, x)
    else:
        assert pruned(x).shape == masked(x).shape


@pytest.mark.parametrize(("heads", "width"), [(1, 4), (3, 1), (3, 3), (3, 4)])
@pytest.mark.parametrize("way", ["reshape", "chunk", "inside"])
def test_fused_qkv_shares_one_choice_but_not_between_heads(
    way: str, heads: int, width: int
) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.p = nn.Linear(4, 3 * heads * width), nn.Linear(heads * width, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.qkv(x).sigmoid()
            if way == "reshape":
                q, k, v = y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            elif way == "inside":
                q, k, v = y.unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
            else:
                parts = y.chunk(3, -1)
                q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in parts)
            return self.p(((q @ k.mT) * 0.125 @ v).transpose(1, 2).flatten(-2)).sum(1)

    model, graph, x = traced(Fused(), 2, 5, 4)
    group = graph["qkv"]
    assert group.prunable
    assert (group.size, group.fronts) == (width, (heads,) if heads > 1 else ())
    assert {m.module for m in group.readers} == {"p"}
    if width == 1:
        return
    assert verify(model, graph) == []
    rows = [[(h + i) % width for i in range(2)] for h in range(heads)]
    gone = [(h, c) for h, row in enumerate(rows) for c in range(width) if c not in row]
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {"qkv": rows})

    def hide(_m: nn.Module, _a: Any, out: Tensor) -> Tensor:
        order = (heads, 3, width) if way == "inside" else (3, heads, width)
        view = out.clone().unflatten(-1, order)
        for h, c in gone:
            if way == "inside":
                view[..., h, :, c] = -torch.inf
            else:
                view[..., :, h, c] = -torch.inf
        return view.flatten(-3)

    masked.qkv.register_forward_hook(hide)
    assert equal(pruned, masked, x)


def test_split_of_unequal_sizes_gives_groups_of_their_own() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.one, self.two = nn.Linear(4, 9), nn.Linear(6, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.made(x).sigmoid().tensor_split([self.one.weight.shape[1]], -1)
            return self.one(a) + self.two(b)

    model, graph, x = traced(Gate(), 5, 4)
    sizes = {g.name: (g.size, {m.module for m in g.readers}) for g in graph.prunable()}
    assert sizes == {"made:0": (6, {"one"}), "made:1": (3, {"two"})}
    assert verify(model, graph) == []
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    small = remove_channels(pruned, graph, {"made:0": [5, 1], "made:1": [2]})
    blind(masked.one, [0, 2, 3, 4])
    blind(masked.two, [0, 1])
    assert equal(pruned, masked, x)
    assert small.original("made:0").tolist() == [[1, 5]]


def test_depthwise_with_a_multiplier() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 3, 1))
    model, graph, x = traced(net, 2, 2, 5, 5)
    assert graph["0"].prunable
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    freed = graph.freed({"0": [0, 3]})
    remove_channels(pruned, graph, {"0": [0, 3]})
    blind(masked[2], range(3, 9))
    assert equal(pruned, masked, x)
    middle = pruned[1]
    assert (middle.groups, middle.in_channels, middle.out_channels) == (2, 2, 6)
    assert freed.parameters == count(model) - count(pruned)


def test_grouped_convolution_gathers_block_by_block() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Conv2d(6, 8, 3, groups=2, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(8, 3, 1),
    )
    model, graph, x = traced(net, 2, 2, 5, 5)
    assert {g.name: (g.size, g.fronts) for g in graph.prunable()} == {
        "0": (3, (2,)),
        "3": (4, (2,)),
    }
    assert verify(model, graph) == []
    cuts = {"0": [[0, 2], [2, 1]], "3": [[3], [0]]}
    freed = graph.freed(cuts)
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    small = remove_channels(pruned, graph, cuts)
    with torch.no_grad():
        masked[3].weight[:4, 1] = 0.0  # block one loses its channel 1, block two its channel 0
        masked[3].weight[4:, 0] = 0.0
    blind(masked[5], [0, 1, 2, 5, 6, 7])
    assert equal(pruned, masked, x)
    assert freed.parameters == count(model) - count(pruned)
    conv = pruned[3]
    assert (conv.groups, conv.in_channels, conv.out_channels) == (2, 4, 2)
    assert tuple(conv.weight.shape) == (2, 2, 3, 3)
    again = remove_channels(pruned, small, {"0": [[1], [0]]})
    assert again.original("0").tolist() == [[2], [1]]
    with torch.no_grad():
        masked[3].weight[:4, 0] = 0.0
        masked[3].weight[4:, 2] = 0.0
    assert equal(pruned, masked, x)
    with pytest.raises(ValueError, match="'0' wants kept channels as 2 rows of equal length"):
        remove_channels(model, graph, {"0": [[0], [1, 2]]})


def test_transposed_convolution() -> None:
    net = nn.Sequential(
        nn.ConvTranspose2d(2, 6, 2), nn.BatchNorm2d(6), nn.Sigmoid(), nn.ConvTranspose2d(6, 3, 2)
    )
    model, graph, x = traced(net, 2, 2, 4, 4)
    assert [g.name for g in graph.prunable()] == ["0"]
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {"0": [1, 4]})
    blind(masked[3], [0, 2, 3, 5], 0)
    assert equal(pruned, masked, x)
    assert (pruned[0].out_channels, pruned[3].in_channels) == (2, 2)


def test_shared_parameters_are_cut_and_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x).sigmoid() * self.b(x).tanh())

    model, graph, x = traced(Tied(), 5, 4)
    (group,) = graph.prunable()
    freed = graph.freed({group.name: [0, 1]})
    assert graph.touched() == 24 + 6 + 6 + 18
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {group.name: [0, 1]})
    blind(masked.c, [2, 3, 4, 5])
    assert equal(pruned, masked, x)
    assert pruned.a.weight is pruned.b.weight
    assert freed.parameters == count(model) - count(pruned)


def test_one_layer_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.loop, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).sigmoid()
            for _ in range(3):
                h = self.loop(h).sigmoid()
            return self.c(h)

    model, graph, x = traced(Twice(), 5, 4)
    (group,) = [g for g in graph if g.status == "free"]
    assert {str(m) for m in group.members} >= {"loop.weight[0]", "loop.weight[1]", "loop.bias[0]"}
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {group.name: [1, 3, 5]})
    blind(masked.loop, [0, 2, 4])
    blind(masked.c, [0, 2, 4])
    assert equal(pruned, masked, x)


def test_linear_on_tokens_that_lie_the_other_way_round() -> None:
    """A non-contiguous input takes another path inside PyTorch (bmm with an expanded weight)."""
    net = Lambda(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    model, graph, x = traced(net, 2, 5, 4)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    graph = trace(model, x)
    assert {m.module for m in graph["made"].readers} == {"read"}
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {"made": [0, 4]})
    blind(masked.read, [1, 2, 3, 5])
    assert equal(pruned, masked, x)


def test_heads_that_are_mixed_keep_the_same_channels() -> None:
    class Talking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.p = nn.Linear(4, 12), nn.Linear(12, 5)
            self.mix = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            v = self.v(x).unflatten(-1, (3, -1))
            return self.p((v + torch.einsum("gh,bhd->bgd", self.mix, v)).flatten(-2))

    model, graph, _ = traced(Talking(), 5, 4)
    assert (graph["v"].size, graph["v"].fronts) == (4, ())
    assert verify(model, graph) == []


def test_whole_heads_are_listed_and_not_cut() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.p = nn.Linear(4, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            v = self.v(x).unflatten(-1, (-1, 4))
            return self.p(functional.layer_norm(v, (4,)).flatten(-2))

    model, graph, _ = traced(Normed(), 5, 4)
    assert graph.prunable() == ()
    heads = [g for g in graph if g.kind == "heads"]
    assert [(g.name, g.size) for g in heads] == [("v:heads", 3)]
    with pytest.raises(ValueError, match="holds whole heads"):
        remove_channels(model, graph, {"v:heads": [0]})


def test_a_channel_on_the_spatial_axis_of_a_convolution_is_frozen() -> None:
    class Slides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Conv1d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) + self.c(h[:, None]).sum((1, 2))[:, None]

    _, graph, _ = traced(Slides(), 5, 4)
    assert graph["a"].status == "frozen"
    assert "module 'c'" in graph["a"].reason


class Attributes(nn.Module):
    """Keeps tensors that are neither parameters nor buffers, and reads some of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.made, self.read, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function
        generator = torch.Generator().manual_seed(1)
        rows = [torch.rand(6, generator=generator).double() + 0.5 for _ in range(5)]
        self.scale, self.shifts, self.pair = rows[0], [0.5, rows[1]], (rows[2], rows[0])
        self.table, self.deep = {"gain": rows[3]}, {"gains": [rows[4]]}
        self.places = torch.rand(5, 6, generator=generator).double()
        self.order = torch.tensor([5, 4, 3, 2, 1, 0])
        self.weight = torch.rand(6, 6, generator=generator).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.function(self, self.made(x).sigmoid()))


ATTRIBUTES: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "tensor": (lambda m, t: t * m.scale, ["scale"]),
    "in a list": (lambda m, t: t * m.shifts[0] + t * m.shifts[1], ["shifts[1]"]),
    "in a tuple, and the same twice": (
        lambda m, t: t * m.pair[0] * m.pair[1],
        ["pair[0]", "scale"],
    ),
    "in a dict": (lambda m, t: t * m.table["gain"], ["table['gain']"]),
    "of two axes": (lambda m, t: t * m.places, ["places"]),
    "a weight": (lambda m, t: (t @ m.weight.abs()) @ m.weight.T * t, ["weight"]),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_tensors_kept_as_attributes_are_cut_along(name: str) -> None:
    function, attributes = ATTRIBUTES[name]
    model, graph, x = traced(Attributes(function), 5, 4)
    assert graph["made"].prunable, str(graph["made"])
    assert {m.tensor for m in graph["made"].members if "." not in m.tensor} == set(attributes)
    assert verify(model, graph) == []
    freed = graph.freed({"made": [1, 2, 5]})
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    small = remove_channels(pruned, graph, {"made": [1, 2, 5]})
    masked.made.register_forward_hook(
        lambda _m, _a, out: out.index_fill(-1, torch.tensor([0, 3, 4]), -torch.inf)
    )
    if name == "in a list":  # zero is not what the readers see where something is added
        blind(masked.read, [0, 3, 4])
    assert equal(pruned, masked, x)
    assert freed.parameters == count(model) - count(pruned) and freed.buffer_bytes == 0
    assert type(pruned.pair) is tuple and model.scale.shape == (6,)
    if "scale" in attributes:
        assert torch.equal(pruned.scale, model.scale[[1, 2, 5]])
        assert name == "tensor" or pruned.pair[1] is pruned.scale
    assert verify(pruned, small) == []
    remove_channels(pruned, small, {"made": [2]})
    with pytest.raises(ValueError, match="the graph was traced at"):
        remove_channels(pruned, small, {"made": [2]})


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, t: t[:, m.order], "looked up by number with the attribute 'order'"),
        (lambda m, t: t * m.deep["gains"][0], "it reads 'deep', a tensor that is neither state"),
        (lambda m, t: t * m.scale / (m.scale * m.scale).sum(), "of weights alone"),
        (lambda m, t: t * m.scale / m.scale.norm(), "of weights alone"),
    ],
)
def test_attributes_that_forbid_a_cut_are_named(
    function: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    model, graph, _ = traced(Attributes(function), 5, 4)
    assert graph["made"].status == "frozen" and reason in graph["made"].reason
    assert verify(model, graph) == []


def test_attributes_that_a_forward_changes_freeze_what_they_meet() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.read, self.mem = nn.Linear(4, 6), nn.Linear(6, 3), torch.zeros(6)

        def forward(self, x: Tensor) -> Tensor:
            self.mem = self.mem.to(x) / 2 + self.made(x)
            return self.read(self.mem)

        def reset(self) -> None:
            self.mem = torch.zeros(6)

    model, graph, _ = traced(Remembers(), 5, 4)
    assert graph["made"].status == "frozen"
    assert "'mem', a tensor that is neither state nor input" in graph["made"].reason
    assert any("aten::" in note for note in graph.notes)
    assert verify(model, graph) == []


def test_unknown_operators_with_several_outputs_are_reported() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.read, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.inner = Lambda(lambda t: torch.kthvalue(t, 2, dim=0, keepdim=True)[0] + t)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.out(self.read(self.made(x)))

    _, graph, _ = traced(Several(), 5, 4)
    group = graph["inner:made"]
    assert group.status == "frozen"
    assert group.reason == (
        "no rule says what this operator does to channels (aten::kthvalue in module 'inner')"
    )
    assert graph["made"].prunable
    assert graph["read"].prunable
    assert graph.notes == (group.reason,)


@pytest.mark.parametrize("output", ["tuple", "dict", "list"])
def test_what_the_model_returns_is_protected(output: str) -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Any:
            h = self.a(x).relu()
            y = self.c(self.b(h))
            return {"tuple": (y, h), "dict": {"y": y, "features": [h]}, "list": [y, h]}[output]

    model, graph, _ = traced(Returns(), 5, 4)
    assert {g.name: g.status for g in graph} == {"a": "protected", "b": "free", "c": "protected"}
    with pytest.raises(ValueError, match="'a' is protected"):
        remove_channels(model, graph, {"a": [0]})


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def twice(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Twice())


@pytest.mark.parametrize("make", [twice, parametrizations.weight_norm])
def test_parametrized_layers_lose_outputs_exactly(make: Callable[..., nn.Module]) -> None:
    net = nn.Sequential(
        make(nn.Conv2d(2, 6, 3)),
        nn.Sigmoid(),
        make(nn.Conv2d(6, 12, 3, groups=6)),
        nn.Sigmoid(),
        nn.Conv2d(12, 5, 1),
    )
    model, graph, x = traced(net, 2, 2, 6, 6)
    assert [g.name for g in graph.prunable()] == ["0"]
    assert {m.module for m in graph["0"].members} == {"0", "2", "4"}
    assert verify(model, graph) == []
    freed = graph.freed({"0": [0, 2, 5]})
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {"0": [0, 2, 5]})
    blind(masked[4], [2, 3, 6, 7, 8, 9])
    assert equal(pruned, masked, x)
    assert freed.parameters == count(model) - count(pruned)
    first, middle = pruned[0], pruned[2]
    assert (first.out_channels, first.in_channels) == (3, 2)
    assert (middle.groups, middle.in_channels, middle.out_channels) == (3, 3, 6)


def test_inputs_of_a_parametrized_layer_are_cut_where_no_norm_sums_over_them() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), twice(nn.Linear(6, 3)))
    model, graph, x = traced(net, 5, 4)
    assert [str(m) for m in graph["0"].readers] == ["2.parametrizations.weight.original[1]"]
    assert verify(model, graph) == []
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(pruned, graph, {"0": [1, 4]})
    with torch.no_grad():
        masked[2].parametrizations.weight.original[:, [0, 2, 3, 5]] = 0.0
    assert equal(pruned, masked, x)
    assert (pruned[2].in_features, pruned[2].out_features) == (2, 3)
    net = nn.Sequential(nn.Linear(4, 6), parametrizations.weight_norm(nn.Linear(6, 3)))
    _, graph, _ = traced(net, 5, 4)
    assert graph["0"].reason.startswith("a norm over the axis of weights alone")


@pytest.mark.parametrize("how", ["spectral", "householder", "cayley", "matrix_exp", "plain"])
def test_parametrizations_that_mix_all_entries_are_frozen_by_name(how: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    if how == "spectral":
        parametrizations.spectral_norm(net[0])
    else:
        trivialised = {} if how != "plain" else {"use_trivialization": False}
        parametrizations.orthogonal(
            net[0], orthogonal_map=None if how == "plain" else how, **trivialised
        )
    model, graph, _ = traced(net, 5, 4)
    assert [g.name for g in graph.prunable()] == ["1"]
    frozen = {g.name: g.reason for g in graph if g.status == "frozen"}
    assert list(frozen) == ([] if how == "plain" else ["0"])
    for reason in (*graph.notes[:1], *frozen.values()):
        assert "(aten::" in reason and "module '0.parametrizations.weight.0'" in reason
    assert graph.notes or frozen
    assert verify(model, graph) == []


def test_parametrized_recurrent_layers_are_frozen_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0")
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.cell(x)[0])

    _, graph, _ = traced(Net(), 5, 2, 4)
    assert graph.prunable() == ()
    assert all("'cell" in g.reason for g in graph if g.status == "frozen")


def test_lazy_modules_are_refused_by_name() -> None:
    net = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"'0\.weight' is lazy"):
        trace(net, torch.randn(2, 4))


def test_wrappers_are_looked_through() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(2, 4)
    plain = trace(net, x)
    for wrapper in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        graph = trace(wrapper, x)
        assert str(graph) == str(plain)
        assert verify(wrapper, graph) == []
    remove_channels(torch.compile(net), plain, {"0": [0, 1]})
    assert net[0].out_features == 2


def test_the_model_is_left_alone_with_its_neurons() -> None:
    from primesvt.models.neurons import lif

    net = nn.Sequential(nn.Linear(4, 6), lif(), nn.Linear(6, 3)).train()
    net[0].weight.requires_grad_(False)
    before = state_bytes(net)
    graph = trace(net, torch.randn(2, 3, 4))
    verify(net, graph)
    assert state_bytes(net) == before
    assert net[1].v == 0.0
    assert all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_graph_prints_like_sentences() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.Softmax(1),
        nn.Conv2d(6, 4, 1),
    )
    _, graph, _ = traced(net, 1, 1, 5, 5)
    assert str(graph).splitlines() == [
        "0: 8 channels, made by 0, read by 3",
        "3: 6 channels, made by 3, read by 5; frozen: softmax over the axis "
        "(aten::_softmax in module '4')",
        "5: 4 channels, made by 5, read by nothing; protected: reaches the model's output",
    ]


def test_kept_indices_are_numpy_lists_or_tensors_in_any_order() -> None:
    for kept in ([5, 1], np.array([1, 5]), torch.tensor([5, 1]), [[1, 5]]):
        model, graph, _ = traced(Lambda(lambda t: t), 5, 4)
        rows = model.made.weight.detach().clone()
        small = remove_channels(model, graph, {"made": kept})
        assert torch.equal(model.made.weight, rows[[1, 5]])
        assert small.original("made").tolist() == [[1, 5]]
        assert graph.to_original("made", kept) == [[1, 5]]

"""Operators that move, number, look up or draw: the groups found, and each cut exact by hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from primesvt.channels import remove_channels, trace, verify
from primesvt.channels.rewriting import rewrite_notes
from primesvt.channels.tracer import module_stack

pytestmark = pytest.mark.quick

Places = Callable[[int, int], Iterable[int]]  # of a channel, from its position and number


def itself(_position: int, channel: int) -> list[int]:
    return [channel]


def in_heads(size: int) -> Places:
    return lambda head, channel: [head * size + channel]


def run_of(count: int) -> Places:
    """A channel is as many neighbouring entries."""
    return lambda _, channel: range(channel * count, (channel + 1) * count)


def tiled(size: int) -> Places:
    return lambda _, channel: (channel, channel + size)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A group that a network is to have, and how to silence a channel of it by hand.

    The layers that make it are followed by a sigmoid, so minus infinity there is zero behind;
    the tensors that read it lose their columns.
    """

    width: tuple[int, ...]  # positions and channels
    made: dict[str, Places] = field(default_factory=dict)
    read: dict[tuple[str, int], Places] = field(default_factory=dict)
    axis: int = -1  # of the channels behind a layer


class Around(nn.Module):
    """A layer, any function of what it makes, and a reader."""

    def __init__(self, made: nn.Module, function: Callable[[Tensor], Tensor], read: nn.Module):
        super().__init__()
        self.made, self.function, self.read = made, function, read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.function(self.made(x).sigmoid()))


Case = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Cut]]


def tokens(
    function: Callable[[Tensor], Tensor],
    *,
    rows: Places = itself,
    columns: Places = itself,
    width: int = 6,
    out: int = 6,
) -> Case:
    cut = Cut(width=(6,), made={"made": rows}, read={("read.weight", 1): columns})
    return (
        lambda: Around(nn.Linear(4, width), function, nn.Linear(out, 3)),
        (2, 5, 4),
        {"made": cut},
    )


def pictures(
    function: Callable[[Tensor], Tensor],
    *,
    rows: Places = itself,
    columns: Places = itself,
    width: int = 6,
    out: int = 6,
    size: int = 6,
    read: Callable[[], nn.Module] | None = None,
) -> Case:
    cut = Cut(width=(size,), made={"made": rows}, read={("read.weight", 1): columns}, axis=1)
    return (
        lambda: Around(nn.Conv2d(3, width, 1), function, read() if read else nn.Conv2d(out, 3, 1)),
        (2, 3, 6, 6),
        {"made": cut},
    )


def series(function: Callable[[Tensor], Tensor]) -> Case:
    cut = Cut(width=(6,), made={"made": itself}, read={("read.weight", 1): itself}, axis=1)
    return (
        lambda: Around(nn.Conv1d(3, 6, 1), function, nn.Conv1d(6, 3, 1)),
        (2, 3, 6),
        {"made": cut},
    )


class Attention(nn.Module):
    """Queries, keys and values in two heads, with a given product of them."""

    def __init__(self, product: Callable[..., Tensor], *, table: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 8)
        self.out, self.product = nn.Linear(8, 5), product
        self.table = nn.Parameter(torch.randn(9, 2)) if table else None
        self.register_buffer("places", torch.arange(25).view(5, 5) % 9)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t(x).sigmoid().unflatten(-1, (2, -1)).transpose(1, 2) for t in (self.q, self.k, self.v)
        )
        if self.table is None:
            y = self.product(q, k, v)
        else:
            bias = self.table[self.places.view(-1)].view(5, 5, -1).permute(2, 0, 1)
            y = self.product(q, k, v, bias)
        return self.out(y.transpose(1, 2).flatten(2))


def attention(product: Callable[..., Tensor], *, table: bool = False) -> Case:
    cuts = {
        "q+k": Cut(width=(2, 3), made={"q": in_heads(3), "k": in_heads(3)}),
        "v": Cut(width=(2, 4), made={"v": in_heads(4)}, read={("out.weight", 1): in_heads(4)}),
    }
    return (lambda: Attention(product, table=table), (2, 5, 4), cuts)


class Looked(nn.Module):
    """A table of embeddings, looked up and read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(7, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.table((x.abs() * 3).long().clamp(0, 6))).sigmoid())


class Recurrent(nn.Module):
    """A recurrent layer between two others."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.cell = nn.Linear(4, 6), kind(6, 7, batch_first=True)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(self.first(x).sigmoid())[0])


def recurrent(kind: type[nn.RNNBase]) -> Case:
    hidden = {("cell.weight_hh_l0", 1): itself, ("last.weight", 1): itself}
    cuts = {
        "first": Cut(width=(6,), made={"first": itself}, read={("cell.weight_ih_l0", 1): itself}),
        "cell:stream": Cut(width=(7,), read=hidden),
    }
    return (lambda: Recurrent(kind), (2, 5, 4), cuts)


def normed() -> nn.Module:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # users have the old form
        first = nn.utils.weight_norm(nn.Linear(4, 6))
    return nn.Sequential(first, nn.Sigmoid(), nn.Linear(6, 3))


def chosen(t: Tensor, sort: bool = False) -> Tensor:
    """Numbers of the two tokens of the highest sum, or of all in order."""
    scores = t.sum(-1)
    return scores.sort(1)[1] if sort else scores.topk(2, 1)[1]


def best(t: Tensor, sort: bool = False) -> Tensor:
    """The same numbers for every channel."""
    return chosen(t, sort)[..., None].expand(-1, -1, t.shape[-1])


def written(t: Tensor) -> Tensor:
    y = t.clone()
    y[:, chosen(t)[0]] = t[:, 1:3]
    return y


def put(t: Tensor, mask: Callable[[Tensor], Tensor]) -> Tensor:
    t = t.clone()
    t[mask(t)] = 0.25
    return t


def border(t: Tensor) -> Tensor:
    """A border one pixel wide, the same along it and different from channel to channel."""
    y, edge = functional.pad(t, [1] * 4), t.sum((0, 2, 3)).view(1, -1, 1, 1)
    y[:, :, :1] = edge
    y[:, :, :, -1:] = edge
    return y


def fold(t: Tensor) -> Tensor:
    return functional.fold(t.mT, (2, 6), 2)


CASES: dict[str, Case] = {
    "abs_": tokens(lambda t: t.sub_(0.5).abs_()),
    "hardswish_": tokens(lambda t: functional.hardswish(t, inplace=True)),
    "prelu": (
        lambda: Around(nn.Conv2d(3, 6, 1), nn.PReLU(6), nn.Conv2d(6, 3, 1)),
        *pictures(lambda t: t)[1:],
    ),
    "glu": tokens(functional.glu, width=12, rows=tiled(6)),
    "var_mean of tokens": tokens(lambda t: t * torch.var_mean(t, 1, keepdim=True)[0]),
    "pixel_shuffle": pictures(lambda t: functional.pixel_shuffle(t, 2), width=24, rows=run_of(4)),
    "pixel_unshuffle": pictures(
        lambda t: functional.pixel_unshuffle(t, 2), out=24, columns=run_of(4)
    ),
    "channel_shuffle": pictures(
        lambda t: functional.channel_shuffle(t, 2), size=3, rows=tiled(3), columns=run_of(2)
    ),
    "im2col": pictures(
        lambda t: functional.unfold(t, 3).mT, columns=run_of(9), read=lambda: nn.Linear(54, 3)
    ),
    "unfold": tokens(lambda t: t.unfold(1, 3, 1).sum(-1)),
    "nearest-exact": pictures(
        lambda t: functional.interpolate(t, scale_factor=2, mode="nearest-exact")
    ),
    "nearest of a series": series(lambda t: functional.interpolate(t, scale_factor=2)),
    "linear of a series": series(
        lambda t: functional.interpolate(t, scale_factor=2, mode="linear")
    ),
    "reflected series": series(lambda t: functional.pad(t, (1, 1), mode="reflect")),
    "adaptive max": pictures(lambda t: functional.adaptive_max_pool2d(t, 3)),
    "channels last": pictures(
        lambda t: functional.adaptive_avg_pool2d(t.to(memory_format=torch.channels_last), 1)
    ),
    "border": pictures(border),
    "depthwise behind a border": (
        lambda: Around(
            nn.Conv2d(3, 6, 1),
            border,
            nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.Conv2d(6, 3, 1)),
        ),
        (2, 3, 6, 6),
        {
            "made": Cut(
                width=(6,), made={"made": itself}, read={("read.1.weight", 1): itself}, axis=1
            )
        },
    ),
    "repeat_interleave": tokens(lambda t: t.repeat_interleave(2, -1), out=12, columns=run_of(2)),
    "repeat_interleave of parts": tokens(
        lambda t: torch.cat([t, 2 * t], -1).repeat_interleave(2, -1),
        out=24,
        columns=lambda _, c: (2 * c, 2 * c + 1, 12 + 2 * c, 13 + 2 * c),
    ),
    "repeat": tokens(lambda t: t.repeat(1, 1, 2), out=12, columns=tiled(6)),
    "repeat of one": tokens(lambda t: t * t.sum(-1, keepdim=True).repeat(1, 1, t.shape[-1])),
    "expand of one": tokens(lambda t: t * t.sum(-1, keepdim=True).expand_as(t)),
    "dot": tokens(lambda t: t * torch.einsum("bnc,bnc->bn", t, t)[..., None]),
    "three factors": tokens(lambda t: torch.einsum("bnc,bmc,bme->bne", t, t, t)),
    "vecdot": tokens(lambda t: t * torch.linalg.vecdot(t, t)[..., None]),
    "addbmm": tokens(lambda t: t * torch.addbmm(torch.zeros(5, 5).to(t), t, t.mT).sum()),
    "identity matrix": tokens(lambda t: t @ (torch.eye(t.shape[-1]).to(t) * t.sum((0, 1)))),
    "diagonal matrix": tokens(lambda t: t @ torch.diag_embed(t.sum(1))),
    "diagonal": tokens(lambda t: t * (t.mT @ t).diagonal(dim1=1, dim2=2)[:, None]),
    "causal": tokens(lambda t: torch.tril(t @ t.mT) @ t),
    "bucketize": tokens(lambda t: t * torch.bucketize(t, torch.tensor([0.2, 0.5]).to(t)).to(t)),
    "mask of entries": tokens(lambda t: put(t, lambda t: t > 0.5)),
    "mask of tokens": tokens(lambda t: put(t, lambda t: t.sum(-1) > 3)),
    "chosen tokens": tokens(lambda t: t[t.sum(-1) > 2.5]),
    "gather": tokens(lambda t: t.gather(1, best(t))),
    "gather in order": tokens(lambda t: t.gather(1, best(t, sort=True))),
    "scatter": tokens(lambda t: torch.zeros_like(t).scatter(1, best(t), t[:, :2])),
    "scatter_add": tokens(lambda t: t.clone().scatter_add_(1, best(t), t[:, :2])),
    "scattered mask": tokens(
        lambda t: t * torch.zeros(t.shape[:2]).to(t).scatter_(1, chosen(t), 1.0)[..., None]
    ),
    "index": tokens(lambda t: t[torch.arange(2)[:, None], chosen(t)]),
    "index_select": tokens(lambda t: t.index_select(1, chosen(t)[0])),
    "index_add": tokens(lambda t: t.clone().index_add_(1, chosen(t)[0], t[:, 1:3])),
    "index_put": tokens(written),
    "sdpa": attention(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=0.3)),
    "causal sdpa": attention(
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=0.3, is_causal=True)
    ),
    "position bias": attention(
        lambda q, k, v, bias: (q @ k.mT / 2 + bias).softmax(-1) @ v, table=True
    ),
    "einsum": attention(
        lambda q, k, v: torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k), v)
    ),
    "embedding": (Looked, (2, 5), {"table": Cut(width=(6,), read={("a.weight", 1): itself})}),
    "grouped transposed": (
        lambda: Around(
            nn.Conv2d(3, 8, 1),
            lambda t: t,
            nn.Sequential(nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Conv2d(6, 3, 1)),
        ),
        (2, 3, 6, 6),
        {
            "made": Cut(width=(2, 4), made={"made": in_heads(4)}, axis=1),
            "read:0": Cut(width=(2, 3), read={("read.1.weight", 1): in_heads(3)}),
        },
    ),
    "depthwise transposed": (
        lambda: Around(
            nn.Conv2d(3, 8, 1),
            lambda t: t,
            nn.Sequential(nn.ConvTranspose2d(8, 16, 2, groups=8), nn.Conv2d(16, 3, 1)),
        ),
        (2, 3, 6, 6),
        {"made": Cut(width=(8,), read={("read.1.weight", 1): run_of(2)})},
    ),
    "norm of weights": (
        normed,
        (2, 5, 4),
        {"0": Cut(width=(6,), made={"0": itself}, read={("2.weight", 1): itself})},
    ),
    **{kind.__name__: recurrent(kind) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
}


@pytest.mark.parametrize("name", CASES)
def test_groups_are_found_and_cut_exactly(name: str) -> None:
    build, shape, cuts = CASES[name]
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(*shape).double()
    graph = trace(model, x)
    free = {g.name for g in graph if g.status == "free" and g.kind != "heads"}
    assert cuts.keys() <= free, str(graph)
    assert verify(model, graph) == []
    for group, cut in cuts.items():
        assert (*graph[group].fronts, graph[group].size) == cut.width
        size = graph[group].size
        kept = [np.roll(np.arange(size), p)[: size - 2] for p in range(graph[group].positions)]
        gone = [(p, c) for p, row in enumerate(kept) for c in range(size) if c not in row]
        pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
        remove_channels(pruned, graph, {group: kept})
        silence(masked, cut, gone)
        with torch.no_grad():
            found, wanted = pruned(x), masked(x)
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12), f"{graph[group]} keeps {kept}"


def silence(model: nn.Module, cut: Cut, gone: list[tuple[int, int]]) -> None:
    def entries(places: Places) -> Tensor:
        return torch.tensor([i for position, channel in gone for i in places(position, channel)])

    def hide(places: Places) -> Callable[..., Any]:
        return lambda _m, _a, out: out.index_fill(cut.axis, entries(places), -torch.inf)

    for layer, places in cut.made.items():
        model.get_submodule(layer).register_forward_hook(hide(places))
    for (name, axis), places in cut.read.items():
        with torch.no_grad():
            model.get_parameter(name).index_fill_(axis, entries(places), 0.0)


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda t: t * torch.rand(t.shape).to(t),
    "randn": lambda t: t + torch.randn(t.shape[-1]).to(t),
    "rand_like": lambda t: t * torch.rand_like(t),
    "randn_like": lambda t: t + torch.randn_like(t),
    "bernoulli": lambda t: torch.bernoulli(t),
    "bernoulli_": lambda t: t * torch.empty_like(t).bernoulli_(0.5),
    "uniform_": lambda t: t * torch.empty(t.shape).to(t).uniform_(0, 1),
    "dropout": lambda t: functional.dropout(t, 0.5, training=True),
}


@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_for_every_channel_bind_nothing(name: str) -> None:
    build, shape, _ = tokens(DRAWN[name])
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(*shape).double()
    graph = trace(model, x)
    assert graph["made"].prunable, str(graph["made"])
    assert verify(model, graph) == []


ORDERED: dict[str, Callable[[Tensor], Tensor]] = {
    "var_mean": lambda t: t - torch.var_mean(t, -1, keepdim=True)[1],
    "topk": lambda t: t * t.topk(2, -1)[0].sum(-1, keepdim=True),
    "cummax": lambda t: t.cummax(-1)[0],
    "gather": lambda t: t.gather(-1, t.argsort(0) % 6),
    "scatter": lambda t: t.clone().scatter_(-1, t.argsort(1), 0.5),
    "index_add": lambda t: t.clone().index_add_(-1, torch.tensor([1, 2]), t[..., :2]),
    "unfold": lambda t: t + t.unfold(-1, 3, 1).sum((-1, -2))[..., None],
    "diagonal beside": lambda t: t * (t.mT @ t).diagonal(1, 1, 2).sum(-1)[:, None, None],
    "triu": lambda t: t @ torch.triu(t.mT @ t),
    "rms": lambda t: functional.rms_norm(t, (6,)),
}


@pytest.mark.parametrize("name", ORDERED)
def test_where_the_order_of_channels_matters_they_are_frozen(name: str) -> None:
    build, shape, _ = tokens(ORDERED[name])
    torch.manual_seed(0)
    graph = trace(build().eval(), torch.randn(*shape))
    groups = [g for g in graph if any(m.module == "made" for m in g.producers)]
    assert groups
    assert all(g.status == "frozen" for g in groups), str(graph)


SDPA = functional.scaled_dot_product_attention
MASK = torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).double()
SCALED: dict[str, Callable[..., Tensor]] = {
    "of the width": SDPA,
    "mask": lambda q, k, v: SDPA(q, k, v, MASK),
    "causal": lambda q, k, v: SDPA(query=q, key=k, value=v, is_causal=True),
    "no dropout": lambda q, k, v: SDPA(q, k, v, None, 0.0, False, scale=None),
    "written": lambda q, k, v: SDPA(q, k, v, scale=2 * q.shape[-1] ** -0.5),
    "grouped": lambda q, k, v: SDPA(q, k, v, enable_gqa=True),
}


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_that_attention_takes_from_the_width_keeps_its_value(name: str) -> None:
    torch.manual_seed(0)
    net, x = Attention(SCALED[name]).double().eval(), torch.randn(2, 5, 4).double()
    graph = trace(net, x)
    assert verify(net, graph) == []
    notes = [n for n in rewrite_notes(graph.rewrites) if n.startswith("The factor")]
    value = 3**-0.5 * (2 if name == "written" else 1)
    assert len(notes) == 1 and notes[0].startswith(f"The factor {value:.6g} (")
    assert "follows a width and keeps its value" in notes[0]
    pruned, masked = copy.deepcopy(net), copy.deepcopy(net)
    remove_channels(pruned, graph, {"q+k": [[0, 2], [1, 2]]})
    silence(masked, attention(SDPA)[2]["q+k"], [(0, 1), (1, 0)])
    with torch.no_grad():
        assert torch.allclose(pruned(x), masked(x), rtol=1e-9, atol=1e-12)


def test_a_scale_that_is_written_as_a_number_needs_no_rewriting() -> None:
    net = Attention(lambda q, k, v: SDPA(q, k, v, scale=0.3)).eval()
    assert trace(net, torch.randn(2, 5, 4)).rewrites == ()


@pytest.mark.parametrize("weights", [True, False])
def test_attention_of_pytorch_is_seen_step_by_step(weights: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True)
            self.other = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.block(x)
            return self.other(x, x, x, need_weights=weights)[0]

    def switches() -> tuple[bool, bool]:
        return torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled

    net, x, before = Net().eval(), torch.randn(2, 5, 6), switches()
    graph = trace(net, x)
    assert graph.notes == ()
    assert graph["block:linear1"].prunable
    assert verify(net, graph, ["block:linear1"]) == []
    assert switches() == before


def test_weights_that_are_computed_have_a_producer() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            std, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
            return functional.conv2d(x, (self.weight - mean) / std, self.bias)

    net = nn.Sequential(Standardised(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 3, 1)).double().eval()
    x = torch.randn(2, 3, 6, 6).double()
    graph = trace(net, x)
    assert [str(m) for m in graph["0"].producers] == ["0.weight[0]"]
    assert verify(net, graph) == []
    pruned, masked = copy.deepcopy(net), copy.deepcopy(net)
    remove_channels(pruned, graph, {"0": [0, 4]})
    with torch.no_grad():
        masked[2].weight.index_fill_(1, torch.tensor([1, 2, 3, 5]), 0.0)
        assert torch.allclose(pruned(x), masked(x), rtol=1e-9, atol=1e-12)


def test_a_linear_layer_on_transposed_tokens_of_several_steps_has_its_group() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Linear(6, 9), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).sigmoid()
            y = torch.stack([y, y]).flatten(3).transpose(-1, -2)
            return self.b(self.a(y).sigmoid()).mean((0, 2))

    net, x = Steps().double().eval(), torch.randn(2, 3, 4, 4).double()
    graph = trace(net, x)
    assert {g.name: g.size for g in graph.prunable()} == {"stem": 6, "a": 9}
    assert [str(m) for m in graph["a"].producers] == ["a.weight[0]"]
    assert verify(net, graph) == []


def test_groups_whose_numbered_names_would_meet_keep_names_of_their_own() -> None:
    class Expand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x).sigmoid(), self.b(x).sigmoid()], 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid(), Expand())
            self.last = nn.Conv2d(9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.features(x))

    net, x = Net().double().eval(), torch.randn(2, 3, 4, 4).double()
    graph = trace(net, x)
    assert len({g.name for g in graph}) == len(graph)
    assert sorted(g.size for g in graph.prunable()) == [4, 5, 6]
    assert verify(net, graph) == []


def test_a_parameter_that_no_group_holds_is_told() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.bias = nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            t = self.a(x).sigmoid()
            return self.b((t @ t.mT + self.bias).softmax(-1) @ t)

    graph = trace(Mixed().eval(), torch.randn(2, 5, 4))
    assert graph["a"].prunable
    assert graph.notes == (
        "'bias' is in no channel group: no layer makes its axes (read by aten::add)",
    )


def test_two_traces_that_overlap_leave_the_switches_as_they_were() -> None:
    """As two threads do: the second begins before the first has ended, and ends after it."""

    def switches() -> list[bool]:
        cuda, mha, mkldnn = torch.backends.cuda, torch.backends.mha, torch.backends.mkldnn
        fused = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()]
        return [*fused, cuda.math_sdp_enabled(), mha.get_fastpath_enabled(), mkldnn.enabled]

    before = switches()
    first, second = (module_stack(nn.Linear(2, 2), [], None) for _ in range(2))
    first.__enter__()
    during = switches()
    second.__enter__()
    first.__exit__(None, None, None)
    assert switches() == during != before
    second.__exit__(None, None, None)
    assert switches() == before

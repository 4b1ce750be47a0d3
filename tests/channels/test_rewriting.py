"""Forwards with widths written into them are cut in every group, exactly, and stay so."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn import functional as F

from primesvt import export, load, prune
from primesvt._files import read_json
from primesvt.channels import ChannelGraph, remove_channels, trace, verify
from primesvt.channels.adapter import Adapted
from primesvt.channels.layout import Layout
from primesvt.channels.plan import Plan, PlanStep, apply_plan, describe_inputs
from primesvt.channels.rewriting import describe_rewrites, rewrite_notes
from primesvt.checkpoint.folder import save_model

from .written import WRITTEN, Hand, Net, SelfAttention, network

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture(scope="module", params=WRITTEN)
def written(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Hand], ChannelGraph]:
    make, hands = WRITTEN[request.param]
    net = make()
    return net, hands, trace(net, X)


def answers(net: nn.Module, x: Tensor = X) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        out = net(x)
    functional.reset_net(net)
    return out


def cut_at_random(hands: Mapping[str, Hand], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    cuts = {}
    for name, hand in hands.items():
        count = int(rng.integers(1, hand.size))
        rows = [np.sort(rng.permutation(hand.size)[:count]) for _ in range(hand.heads)]
        cuts[name] = np.asarray(rows)
    return cuts


def silenced(
    net: nn.Module, hands: Mapping[str, Hand], cuts: Mapping[str, np.ndarray], x: Tensor = X
) -> Tensor:
    """The original whose readers see zeros in the channels that are gone, worked out by hand."""
    net = copy.deepcopy(net)
    for name, rows in cuts.items():
        hand = hands[name]
        for module, side, dim, *beside in hand.reads:
            stride = hand.size + (beside[0] if beside else 0)
            gone = [
                p * stride + c
                for p, row in enumerate(rows)
                for c in set(range(hand.size)) - set(row.tolist())
            ]
            silence(net.get_submodule(module), side, dim, gone)
    return answers(net, x)


def silence(module: nn.Module, side: str, dim: int, gone: list[int]) -> None:
    index = torch.tensor(gone)

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].index_fill(dim, index, 0.0),)

    def after(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out.index_fill(dim, index, 0.0)

    if side == "in":
        module.register_forward_pre_hook(before)
    else:
        module.register_forward_hook(after)


def pruned(net: nn.Module, graph: ChannelGraph, cuts: Mapping[str, Any]) -> nn.Module:
    smaller = copy.deepcopy(net)
    remove_channels(smaller, graph, cuts)
    return smaller


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def saved(net: nn.Module, graph: ChannelGraph, cuts: Mapping[str, Any], folder: Path) -> nn.Module:
    """Prune a network and write its folder."""
    small = copy.deepcopy(net)
    left = remove_channels(small, graph, cuts)
    steps = [
        PlanStep(
            group=name,
            rate=0.5,
            before=(graph[name].positions, graph[name].size),
            after=(left[name].positions, left[name].size),
            accuracy=None,
            drop=None,
            bound=None,
            saving=0.0,
            parameter_bytes=0,
        )
        for name in cuts
    ]
    kept = {n: tuple(map(tuple, graph.to_original(n, rows))) for n, rows in cuts.items()}
    plan = Plan(
        model_hash="",
        config=None,
        inputs=describe_inputs(graph.example),
        steps=tuple(steps),
        groups=kept,
        rewrites=describe_rewrites(left.rewrites, left.sizes),
    )
    save_model(small, folder, plan=Plan.from_dict(plan.to_dict()))
    return small


def stays_so(small: nn.Module, x: Tensor, *, pickled: bool = True) -> None:
    """A pruned network is the same copied, stored, exported, and trains."""
    wanted, others = answers(small, x), [copy.deepcopy(small)]
    if pickled:
        file = io.BytesIO()
        torch.save(small, file)
        file.seek(0)
        others.append(torch.load(file, weights_only=False))
    for other in others:
        assert torch.equal(answers(other, x), wanted)
    with torch.no_grad():
        program = torch.export.export(small, (x,))
    assert torch.allclose(program.module()(x), wanted, rtol=1e-9, atol=1e-12)
    trained = others[0].train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(x).square().sum().backward()
    assert all(p.grad is not None for p in trained.parameters())
    optimizer.step()
    assert not torch.equal(answers(trained.eval(), x), wanted)


def test_every_group_is_found_and_none_refused(
    written: tuple[nn.Module, dict[str, Hand], ChannelGraph],
) -> None:
    net, hands, graph = written
    free = {
        g.name: (g.size, g.positions) for g in graph if g.status == "free" and g.kind != "heads"
    }
    assert free == {name: (hand.size, hand.heads) for name, hand in hands.items()}
    assert {g.name for g in graph if g.status != "free"} == {"head"}
    assert graph.rewrites
    assert verify(net, graph) == []
    without = {r.group for r in verify(net, replace(graph, rewrites=()))}
    assert without, "the sizes of this fixture need no rewriting"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cuts_are_exact(
    written: tuple[nn.Module, dict[str, Hand], ChannelGraph], seed: int
) -> None:
    net, hands, graph = written
    cuts = cut_at_random(hands, seed)
    found, wanted = answers(pruned(net, graph, cuts)), silenced(net, hands, cuts)
    assert close(found, wanted)
    assert not close(found, answers(net))


def test_each_group_alone_is_exact(
    written: tuple[nn.Module, dict[str, Hand], ChannelGraph],
) -> None:
    net, hands, graph = written
    for name, rows in cut_at_random(hands, 3).items():
        one = {name: rows}
        assert close(answers(pruned(net, graph, one)), silenced(net, hands, one)), name


def test_other_batches_and_resolutions(
    written: tuple[nn.Module, dict[str, Hand], ChannelGraph],
) -> None:
    net, hands, graph = written
    cuts = cut_at_random(hands, 4)
    small = pruned(net, graph, cuts)
    for shape in ((1, 3, 8, 8), (5, 3, 12, 16)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(5)).double()
        assert close(answers(small, x), silenced(net, hands, cuts, x))


def test_copies_files_and_a_second_cut(
    written: tuple[nn.Module, dict[str, Hand], ChannelGraph],
) -> None:
    net, hands, graph = written
    cuts = cut_at_random(hands, 6)
    small = copy.deepcopy(net)
    left = remove_channels(small, graph, cuts)
    wanted = answers(small)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for other in (copy.deepcopy(small), torch.load(file, weights_only=False)):
        assert torch.equal(answers(other), wanted)
        assert isinstance(other, Net) and type(other).__name__ == "Net"
    assert verify(small, left) == []
    again = trace(small, X)
    assert str(again) == str(left)
    first = {name: [[0]] * hands[name].heads for name in cuts}
    smallest = pruned(small, left, first)
    assert torch.equal(answers(smallest), answers(pruned(small, again, first)))
    whole = {n: [[int(row[0])] for row in rows] for n, rows in cuts.items()}
    assert close(answers(smallest), answers(pruned(net, graph, whole)))


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_a_training_step_and_an_exported_program(
    written: tuple[nn.Module, dict[str, Hand], ChannelGraph],
) -> None:
    net, hands, graph = written
    small = pruned(net, graph, cut_at_random(hands, 7)).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = [p.detach().clone() for p in small.parameters()]
    small(X).square().sum().backward()
    optimizer.step()
    functional.reset_net(small)
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))
    small.eval()
    with torch.no_grad():
        program = torch.export.export(small, (X,))
    functional.reset_net(small)
    assert torch.equal(program.module()(X), answers(small))


@pytest.mark.parametrize("name", ["SDT-V1", "SGLFormer"])
def test_an_exported_file_needs_no_code_of_the_user(name: str, tmp_path: Path) -> None:
    make, hands = WRITTEN[name]
    net = make().float()
    small = pruned(net, trace(net, X.float()), cut_at_random(hands, 8))
    export(small, tmp_path / "net.pt2", format="torch-export", example_input=X.float())
    program = torch.export.load(tmp_path / "net.pt2").module()
    assert torch.allclose(program(X.float()), answers(small, X.float()), atol=1e-5)


def test_a_cut_of_nothing_changes_nothing() -> None:
    net = network(SelfAttention(), tokens=True)
    graph = trace(net, X)
    remove_channels(net, graph, {"stem:stream": [list(range(16))]})
    assert not any(isinstance(module, Adapted) for module in net.modules())


def test_plans_hold_what_is_rewritten_and_folders_load(tmp_path: Path) -> None:
    net = network(SelfAttention(), tokens=True).float()
    images = torch.randn(60, 3, 8, 8)
    data = torch.utils.data.TensorDataset(images, answers(net, images).argmax(1))
    result = prune(
        net,
        data=data,
        example_input=X[:2].float(),
        max_accuracy_drop=30.0,
        out=tmp_path / "run",
        policy="uniform",
        rates=[0.5],
        gate="point",
        seed=0,
    )
    assert result.refusals == () and result.plan.groups
    kinds = {r["kind"] for r in result.plan.rewrites}
    assert kinds == {"attribute", "call", "constant"}
    factor = next(r for r in result.plan.rewrites if r["kind"] == "constant")
    assert (factor["before"], factor["after"], factor["module"]) == (0.5, 0.5, "blocks.0")
    assert any("follows a width and keeps its value" in note for note in result.metrics.notes)
    loaded = load(tmp_path / "run", into=network(SelfAttention(), tokens=True).float())
    assert torch.equal(answers(loaded, X.float()), answers(result.model, X.float()))
    plan = Plan.load(tmp_path / "run")
    changed = replace(plan, rewrites=plan.rewrites[1:])
    with pytest.raises(ValueError, match="writes other sizes"):
        apply_plan(network(SelfAttention(), tokens=True), changed)


class Branches(nn.Module):
    """Takes another path in training, for wide batches, and by the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width = nn.Linear(4, 8), nn.Linear(8, 3), 8

    def forward(self, x: Tensor, steps: int = 1) -> Tensor:
        y = self.a(x)
        double = 2 * self.width
        if self.training:
            y = y.reshape(len(x), double // 2).sigmoid()
        if len(x) > 10:
            return self.b(y.reshape(2, len(x) // 2, double // 2).flatten(0, 1))
        for _ in range(steps):
            y = y.view(len(x), double // 2) * 1.0
        return self.b(y)


def test_paths_that_were_not_traced_are_refused_not_guessed() -> None:
    torch.manual_seed(0)
    net, x = Branches().eval(), torch.randn(3, 4)
    graph = trace(net, x)
    assert verify(net, graph) == []
    small = pruned(net, graph, {"a": [0, 1, 2]})
    assert small(x).shape == (3, 3)
    assert small(x, 5).shape == (3, 3), "a place with one size is right however often it is reached"
    assert small.train()(x).shape == (3, 3), "the trace took the path of training too"
    with pytest.raises(
        ValueError, match=r"reshape in line \d+ of Branches.forward was not reached"
    ):
        small(torch.randn(12, 4))


class Equal(nn.Module):
    """As many tokens as channels, and two widths that are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.n = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), 6

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).reshape(len(x), 6, self.n).sigmoid()
        return self.c((self.b(x).view(len(x), 6, 6).sigmoid() + a.transpose(1, 2)).transpose(1, 2))


def test_equal_sizes_are_told_apart() -> None:
    """Tokens of one summand are channels of the other: no cut is exact, and none is made."""
    net, x = Equal().eval(), torch.randn(2, 6, 4)
    assert [g.name for g in trace(net, x).prunable()] == []


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).reshape(-1, 6, 6).relu()
        return self.c(self.b(y).reshape(len(x), 6, 6).relu())


def test_a_number_of_tokens_stays_where_it_equals_a_width() -> None:
    torch.manual_seed(0)
    net, x = Same().eval(), torch.randn(2, 6, 4)
    graph = trace(net, x)
    assert [r.argument for r in graph.rewrites] == [(3,), (3,)]
    assert verify(net, graph) == []
    small = pruned(net, graph, {"a": [1, 2, 5], "b": [0, 3]})
    wanted = net.c(
        net.b(net.a(x)[..., [1, 2, 5]].relu() @ torch.eye(6)[[1, 2, 5]])[..., [0, 3]].relu()
        @ torch.eye(6)[[0, 3]]
    )
    assert torch.allclose(small(x), wanted, atol=1e-6)


class Pieces(nn.Module):
    """Widths given to split, narrow, slices, new tensors, expand, repeat, unflatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5 + 7 + 6), nn.Linear(7, 3)
        self.u, self.w, self.bias = nn.Linear(5, 3), nn.Linear(6, 3), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        u, v, w = y.split([5, 7, 6], -1)
        u = u + torch.zeros(len(x), 5) + x.new_ones(5)
        v = y.narrow(-1, 5, 7).sigmoid() + self.bias.view(1, 7).expand(len(x), 7) + v
        w = (y[:, 12:18].unflatten(1, (6,)) + y[..., -6:] * w).relu()
        gate = x[:, :1].sigmoid().expand(-1, 7)
        return self.u(u.relu()) + self.b(v * gate) + self.w(w)


def test_sizes_of_pieces_and_new_tensors() -> None:
    torch.manual_seed(0)
    net, x = Pieces().eval(), torch.randn(3, 4)
    graph = trace(net, x)
    assert sorted((g.size, g.status) for g in graph if g.status != "protected") == [
        (5, "free"),
        (6, "free"),
        (7, "free"),
    ]
    assert verify(net, graph) == []


def test_what_was_rewritten_stays_so_in_a_network_that_is_traced_again() -> None:
    """A width of one is what a width of four and a cut stream would compute by chance."""
    net = network(SelfAttention(), tokens=True)
    small = pruned(net, trace(net, X), {"blocks.0.q+k": [[0]] * 4, "blocks.0.v": [[0]] * 4})
    again = trace(small, X)
    assert verify(small, again) == []
    smaller = pruned(small, again, {"stem:stream": list(range(5))})
    assert answers(smaller).shape == (3, 5)


def test_attributes_are_set_where_they_are_mere_sizes() -> None:
    net = network(SelfAttention(), tokens=True)
    small = pruned(net, trace(net, X), {"blocks.0.v": [[0, 1, 2]] * 4})
    assert [small.blocks[0].get_submodule(n).width for n in "qkv"] == [16, 16, 12]
    assert isinstance(small.blocks[0], Adapted)
    assert not isinstance(small.blocks[0].v, Adapted), "an attribute needs no adapter"
    assert isinstance(net.blocks[0].v.width, int) and type(net.blocks[0].v.width) is int


def test_compiled_networks_run_and_are_the_same() -> None:
    net = network(SelfAttention(), tokens=True)
    small = pruned(net, trace(net, X), {"blocks.0.v": [[0, 1]] * 4})
    wanted = answers(small)
    compiled = torch.compile(small, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(X), wanted)
    functional.reset_net(small)


def test_notes_say_what_is_rewritten() -> None:
    net = network(SelfAttention(), tokens=True)
    first, *factors = rewrite_notes(trace(net, X).rewrites)
    assert first == (
        "Widths are written into the forward of 5 modules; after a cut: 4 attributes set and 4 "
        "numbers of calls replaced as it runs."
    )
    assert factors == [
        "The factor 0.5 (mul in line 5 of SelfAttention.forward of module 'blocks.0') follows a "
        "width and keeps its value."
    ]


class Follows(nn.Module):
    """A factor that follows a width and something else: nothing that could be kept."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.a, self.b = what, nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        other = {"batch": len(x), "tokens": x.shape[1], "values": x.abs().max().item()}
        return self.b(y * (other[self.what] / y.shape[-1]))


@pytest.mark.parametrize("what", ["batch", "tokens", "values"])
def test_factors_that_follow_the_input_too_are_refused(what: str) -> None:
    """At other sizes the pruned network would keep the factor of the traced input."""
    torch.manual_seed(0)
    net, x = Follows(what).eval(), torch.randn(3, 6, 5)
    (refusal,) = verify(net, trace(net, x))
    assert refusal.group == "a" and "differs from the silenced original" in refusal.reason


class Trains(nn.Module):
    """Code that only a training forward reaches."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.a, self.b, self.half = what, nn.Linear(5, 12), nn.Linear(12, 3), 6

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.training and self.what == "size":
            y = y.reshape(len(x), 2 * self.half)
        if self.training and self.what == "factor":
            y = y * y.shape[-1] ** -0.5
        if self.training and self.what == "tensor":
            y = y * torch.tensor(y.shape[-1] ** -0.5)
        return self.b(y)


@pytest.mark.parametrize("what", ["size", "factor", "tensor"])
def test_what_only_training_writes_is_rewritten_or_refused(what: str) -> None:
    torch.manual_seed(0)
    net, x = Trains(what).eval(), torch.randn(3, 5)
    graph = trace(net, x)
    assert [r.group for r in verify(net, graph)] == (["a"] if what == "tensor" else [])
    if what != "tensor":
        small = pruned(net, graph, {"a": [0, 3, 4]}).train()
        y = net.a(x).relu()[:, [0, 3, 4]] * (12**-0.5 if what == "factor" else 1.0)
        wanted = y @ net.b.weight[:, [0, 3, 4]].T + net.b.bias
        assert torch.allclose(small(x), wanted, atol=1e-6)


class Nested(nn.Module):
    """Holds another one of its class; the last one's width is the result's, and stays."""

    def __init__(self, given: int, width: int, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.half, self.inner = nn.Linear(given, width), width // 2, inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu().reshape(x.shape[0], 2 * self.half)
        y = y * y.shape[-1] ** -0.5
        return y if self.inner is None else self.inner(y)


def test_a_module_inside_one_of_its_class_keeps_its_own_sizes() -> None:
    torch.manual_seed(0)
    net, x = Nested(5, 12, Nested(12, 8)).eval(), torch.randn(3, 5)
    graph = trace(net, x)
    assert verify(net, graph) == []
    small = pruned(net, graph, {"a": [0, 1, 2]})
    inner = (net.a(x).relu() * 12**-0.5)[:, :3] @ net.inner.a.weight[:, :3].T + net.inner.a.bias
    assert torch.allclose(small(x), inner.relu() * 8**-0.5, atol=1e-6)


class Several(nn.Module):
    """Factors that another branch, or a later turn, has at other values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, steps: int = 1) -> Tensor:
        y = self.a(x).relu()
        if len(x) > 6:
            return self.b(y * y.shape[-1] ** -1)
        return sum(self.b(y * ((t + 1) / y.shape[-1])) for t in range(steps))


def test_factors_that_were_not_traced_are_an_error() -> None:
    torch.manual_seed(0)
    net, x = Several().eval(), torch.randn(3, 5)
    small = pruned(net, trace(net, x), {"a": [0, 1, 2]})
    assert small(x).shape == (3, 3)
    with pytest.raises(ValueError, match=r"mul in line \d+ .* given other sizes than before"):
        small(x, 2)
    with pytest.raises(ValueError, match=r"mul in line \d+ of Several.forward was not reached"):
        small(torch.randn(9, 5))


class Attends(nn.Module):
    """PyTorch's attention, with a scale of its own or one that is written."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 6)
        self.out, self.options = nn.Linear(6, 3), options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (2, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        dropout = 0.5 if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, **self.options)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.25}])
def test_the_scale_of_attention_stays(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Attends(**options).double().eval(), torch.randn(3, 5, 4).double()
    graph = trace(net, x)
    assert [g.name for g in graph.prunable()] == ["q+k", "v"]
    assert verify(net, graph) == []
    cuts = {"q+k": [[0], [3]], "v": [[0, 2], [1, 2]]}
    small = saved(net, graph, cuts, tmp_path)
    hands = {
        "q+k": Hand(size=4, heads=2, reads=(("q", "out", -1), ("k", "out", -1))),
        "v": Hand(size=3, heads=2, reads=(("out", "in", -1),)),
    }
    wanted = silenced(net, hands, {n: np.asarray(rows) for n, rows in cuts.items()}, x)
    assert close(answers(small, x), wanted)
    assert answers(small, torch.randn(2, 9, 4).double()).shape == (2, 9, 3)
    stays_so(small, x)
    loaded = load(tmp_path, into=Attends(**options).double())
    assert torch.equal(answers(loaded, x), answers(small, x))
    kinds = [r["kind"] for r in read_json(tmp_path / "config.json")["plan"]["rewrites"]]
    assert kinds == ([] if "scale" in options else ["constant"])


class Multihead(nn.Module):
    """PyTorch's multi-head attention, of a stream to itself or to keys of other widths."""

    def __init__(self, *, weights: bool = True, across: bool = False, **options: Any) -> None:
        super().__init__()
        self.across, self.weights, dims = across, weights, {"kdim": 5, "vdim": 7} if across else {}
        self.a = nn.Linear(4, 8)
        self.k, self.v = (nn.Linear(4, 5), nn.Linear(4, 7)) if across else (None, None)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, **dims, **options)
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.a(x).sigmoid()
        k, v = (self.k(x).sigmoid(), self.v(x).sigmoid()) if self.across else (q, q)
        y, shares = self.attn(q, k, v, need_weights=self.weights)
        y = self.b((q + y).sigmoid())
        return y if shares is None else y + shares.sum(-1, keepdim=True)


def attended(net: Multihead, cuts: Mapping[str, Any]) -> Multihead:
    """The original in which what reads removed channels of the attention has zeros for them."""
    net = copy.deepcopy(net)
    kept = {name: np.asarray(rows) for name, rows in cuts.items()}
    attn = net.attn
    for name, rows in kept.items():
        heads, size = (2, 4) if name.startswith("attn") else (1, 8)
        gone = [h * size + c for h in range(heads) for c in range(size) if c not in rows[h]]
        with torch.no_grad():
            if name == "a:stream":  # behind the sigmoid, so weights that read it
                weight = attn.q_proj_weight if net.across else attn.in_proj_weight
                weight[:, gone] = 0.0
                net.b.weight[:, gone] = 0.0
            elif name in ("attn.q+k", "attn:0"):
                for part in (0, 1):
                    if net.across:
                        (attn.q_proj_weight, attn.k_proj_weight)[part][gone] = 0.0
                    else:
                        attn.in_proj_weight[[8 * part + c for c in gone]] = 0.0
                    if attn.in_proj_bias is not None:
                        attn.in_proj_bias[[8 * part + c for c in gone]] = 0.0
            else:
                attn.out_proj.weight[:, gone] = 0.0
    return net


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize(
    "options", [{}, {"weights": False}, {"bias": False}, {"across": True}, {"dropout": 0.5}]
)
def test_multi_head_attention_of_pytorch_is_cut(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Multihead(**options).double().eval(), torch.randn(3, 5, 4).double()
    graph = trace(net, x)
    free = {g.name: (g.positions, g.size) for g in graph if g.status == "free"}
    free = {name: sizes for name, sizes in free.items() if not name.endswith("heads")}
    first, second = (n for n in free if n.startswith("attn"))
    inside = {"k": (1, 5), "v": (1, 7)} if options.get("across") else {}
    assert free == {"a:stream": (1, 8), **inside, first: (2, 4), second: (2, 4)}
    assert verify(net, graph) == []
    (note,) = (n for n in rewrite_notes(graph.rewrites) if "MultiheadAttention" in n)
    assert note == (
        "The factor 0.5 (scale of MultiheadAttention of module 'attn') follows a width and keeps "
        "its value."
    )
    every = {first: [[0], [2]], second: [[0, 1, 3], [1, 2, 3]], "a:stream": [[0, 2, 3, 6, 7]]}
    for cuts in (every, *({name: rows} for name, rows in every.items())):
        small = pruned(net, graph, cuts)
        assert close(answers(small, x), answers(attended(net, cuts), x)), cuts
    small = saved(net, graph, every, tmp_path)
    assert type(net.attn) is nn.MultiheadAttention
    attn = small.attn
    assert isinstance(attn, nn.MultiheadAttention)
    wide = (5, 5, 7) if options.get("across") else (5, 5, 5)
    assert (attn.embed_dim, attn.kdim, attn.vdim, attn.head_dim) == (*wide, 1)
    assert (attn.out_proj.in_features, attn.out_proj.out_features) == (6, 5)
    stays_so(small, x)
    loaded = load(tmp_path, into=Multihead(**options).double())
    assert torch.equal(answers(loaded, x), answers(small, x))
    again = trace(small, x)
    assert verify(small, again) == []
    assert close(
        answers(pruned(small, again, {second: [[0], [2]]}), x),
        answers(attended(net, {**every, second: [[0], [3]]}), x),
    )


def test_an_attention_that_keeps_its_widths_keeps_its_class() -> None:
    net, x = Multihead(across=True).eval(), torch.randn(3, 5, 4)
    graph = trace(net, x)
    assert type(pruned(net, graph, {"k": list(range(5))}).attn) is nn.MultiheadAttention
    assert type(pruned(net, graph, {"k": [1, 4]}).attn) is not nn.MultiheadAttention


class Encoder(nn.Module):
    """Layers of PyTorch, whose fused forward knows one width of an attention only."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.layers(x, src_key_padding_mask=padding))


def test_layers_with_a_fused_forward_take_the_one_step_by_step() -> None:
    torch.manual_seed(0)
    net, x = Encoder().eval(), torch.randn(3, 5, 8)
    graph = trace(net, x)
    names = [g.name for g in graph.prunable()]
    assert len(names) == 6 and verify(net, graph) == []
    small = pruned(net, graph, {n: [[0, 2]] * graph[n].positions for n in names})
    wanted = small(x)  # with gradients, so not fused
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    with torch.no_grad():
        assert torch.allclose(small(x), wanted, atol=1e-6)
        assert torch.allclose(small(x, padding)[1, :4], small(x[1:2, :4])[0], atol=1e-6)


def test_attentions_that_have_no_exact_removal_here_are_refused() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    for attention in (Own(8, 2), nn.MultiheadAttention(8, 2, add_bias_kv=True)):
        net, x = Multihead().eval(), torch.randn(3, 5, 4)
        net.attn = attention
        attention.batch_first = True
        graph = trace(net, x)
        free = {g.name for g in graph if g.status == "free" and g.kind != "heads"}
        assert free == {r.group for r in verify(net, graph)} and "a:stream" in free
        assert any(r.module == "attn" for r in verify(net, graph))


def normed(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


def test_a_layer_with_weight_norm_stays_so(tmp_path: Path) -> None:
    def make() -> nn.Module:
        layers = normed(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()
        return nn.Sequential(*layers, normed(nn.Linear(6, 3))).double()

    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(3, 4).double()
    graph = trace(net, x)
    small = saved(net, graph, {"0": [[1, 2, 5]]}, tmp_path)
    hands = {"0": Hand(size=8, heads=1, reads=(("2", "in", -1),))}
    assert close(answers(small, x), silenced(net, hands, {"0": np.asarray([[1, 2, 5]])}, x))
    stored = small[0].parametrizations.weight
    assert stored.original0.shape == (3, 1) and stored.original1.shape == (3, 4)
    stays_so(small, x, pickled=False)  # PyTorch stores the state dict of such layers only
    assert torch.equal(answers(load(tmp_path, into=make()), x), answers(small, x))


class Held(nn.Module):
    """Keeps a scale and a list of shifts that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.scale = torch.arange(1.0, 9.0).double()
        self.shifts = [torch.arange(8.0).double() - 4, "none"]

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * self.scale + self.shifts[0]).relu())


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_a_network_with_tensors_as_attributes_stays_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Held().double().eval(), torch.randn(3, 4).double()
    graph = trace(net, x)
    small = saved(net, graph, {"a": [[1, 2, 5]]}, tmp_path)
    hands = {"a": Hand(size=8, heads=1, reads=(("b", "in", -1),))}
    assert close(answers(small, x), silenced(net, hands, {"a": np.asarray([[1, 2, 5]])}, x))
    stays_so(small, x)
    loaded = load(tmp_path, into=Held().double())
    assert torch.equal(answers(loaded, x), answers(small, x))
    assert loaded.scale.tolist() == [2.0, 3.0, 6.0]
    assert loaded.shifts[0].tolist() == [-3.0, -2.0, 1.0] and loaded.shifts[1] == "none"


KNOWN: list[str] = []


class Listed(nn.Module):
    """The classes of a project are listed once."""

    def __init_subclass__(cls, key: str) -> None:
        KNOWN.append(key)


class Own(Listed, key="own"):
    """Has its own ways of being copied and stored."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.half, self.how = nn.Linear(5, 12), nn.Linear(12, 3), 6, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu().reshape(len(x), 2 * self.half)
        return self.b(y * y.shape[-1] ** -0.5)


class OwnState(Own, key="state"):
    def __getstate__(self) -> dict[str, Any]:
        return {"all": {k: v for k, v in vars(self).items() if not k.startswith("_sizes")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["all"])


class OwnReduce(Own, key="reduce"):
    def __reduce__(self) -> Any:
        return OwnReduce, (self.how,), vars(self).copy()


class OwnCopy(Own, key="copy"):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = type(self)(self.how)
        made.a, made.b = copy.deepcopy(self.a, memo), copy.deepcopy(self.b, memo)
        return made


@pytest.mark.parametrize("cls", [Own, OwnState, OwnReduce, OwnCopy])
def test_classes_with_their_own_ways_of_copying(cls: type[Own]) -> None:
    torch.manual_seed(0)
    net, x = cls("so").eval(), torch.randn(3, 5)
    graph = trace(net, x)
    assert verify(net, graph) == []
    small = pruned(net, graph, {"a": [0, 1, 2]})
    assert KNOWN == ["own", "state", "reduce", "copy"]
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for other in (copy.deepcopy(small), torch.load(file, weights_only=False)):
        assert isinstance(other, cls) and torch.equal(other(x), small(x))
    whole = type(small)("new")
    assert whole(x).shape == (3, 3), "one made anew has all its channels, and its own sizes"


def test_generated_code_is_refused_where_it_writes_sizes() -> None:
    net = torch.fx.symbolic_trace(Nested(5, 12, nn.Linear(12, 3))).eval()
    (refusal,) = verify(net, trace(net, torch.randn(3, 5)))
    assert refusal.group == "a"


def test_a_layout_in_the_symbols_of_another_trace() -> None:
    """A head of size 1 may be no symbol there; its channels still are, one after the other."""
    head, width, other = (Layout(kind="symbol", symbol=n) for n in (3, 4, 5))
    both = Layout(kind="concat", parts=(Layout(kind="product", parts=(head, width)), other))
    found = both.renumbered({4: 7, 5: 8})
    assert found is not None and found.length({7: 6, 8: 10}) == 16
    assert both.renumbered({5: 8}) is None, "a length without one of its parts is another length"

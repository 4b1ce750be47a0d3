"""Functions of weights alone: nothing in them can be silenced, so what they sum over is frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from primesvt.channels import ChannelGraph, ChannelGroup, remove_channels, trace, verify
from primesvt.channels.rules.registry import Call

KEPT, GONE = [1, 2, 5, 6], [0, 3, 4, 7]


class Reader(nn.Module):
    """Reads eight channels through any function of its parameters and buffers.

    The function gets the activations and the mask by which a test hides channels from the reader.
    """

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(6, 8))
        self.other = nn.Parameter(torch.randn(6, 8))
        self.scale = nn.Parameter(torch.rand(8) + 0.5)  # one value for every channel
        self.made = nn.Parameter(torch.rand(6) + 0.5)  # one value for every output
        self.left, self.right = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5, 8))
        self.square = nn.Parameter(torch.randn(8, 8))
        self.bn = nn.BatchNorm1d(8)
        self.register_buffer("mask", (torch.rand(6, 8) > 0.3).double())
        self.register_buffer("u", functional.normalize(torch.randn(6), dim=0))
        self.register_buffer("v", functional.normalize(torch.randn(8), dim=0))

    def forward(self, h: Tensor, m: Tensor) -> Tensor:
        return self.function(self, h, m)


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.c, self.reader, self.head = nn.Linear(3, 8), Reader(function), nn.Linear(6, 4)

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        h = self.c(x).sigmoid()
        m = torch.ones_like(h) if m is None else m
        return self.head(self.reader(h * m, m))


def made_by(graph: ChannelGraph, module: str) -> ChannelGroup:
    (group,) = [g for g in graph if any(str(m) == f"{module}.weight[0]" for m in g.members)]
    return group


def verdict(function: Callable[[Any, Tensor, Tensor], Tensor], seed: int = 0) -> str:
    """``frozen`` or ``exact``; anything between the two fails here."""
    torch.manual_seed(seed)
    model, x = Net(function).double().eval(), torch.randn(5, 3).double()
    for tensor in model.reader.bn.parameters():
        nn.init.uniform_(tensor, 0.5, 1.5)
    nn.init.uniform_(model.reader.bn.running_mean, 0.5, 1.5)
    graph = trace(model, x)
    group = made_by(graph, "c")
    if group.status == "frozen":
        assert "aten::" in group.reason
        assert "module 'reader" in group.reason
        return "frozen"
    assert group.status == "free"
    refusals = verify(model, graph, [group.name])
    if refusals:
        assert all("aten." in r.reason and r.module for r in refusals)
        return "refused"
    pruned = copy.deepcopy(model)
    remove_channels(pruned, graph, {group.name: KEPT})
    m = torch.ones(5, 8).double().index_fill(1, torch.tensor(GONE), 0.0)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x, m), rtol=1e-9, atol=1e-12)
    return "exact"


def weight(function: Callable[[Any], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda r, h, m: functional.linear(h, function(r))


def divided(size: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """The weight divided by one number for every output, or one for all."""
    return weight(lambda r: r.w / size(r.w))


def power_iteration(r: Any) -> Tensor:
    u, v = r.u, r.v
    for _ in range(2):
        v = functional.normalize(r.w.T @ u, dim=0)
        u = functional.normalize(r.w @ v, dim=0)
    return r.w / (u @ r.w @ v)


def standardised(w: Tensor) -> Tensor:
    var, mean = torch.var_mean(w, 1, keepdim=True)
    return (w - mean) / (var + 1e-5).sqrt()


def written(r: Any) -> Tensor:
    """Squares summed in memory that the loop fills by slices."""
    total = torch.zeros_like(r.w)
    total[:3] = r.w[:3].square()
    total[3:].copy_(r.w[3:].square())
    return r.w / total.sum(1, keepdim=True)


SUMMED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    # norms
    "pow, sum, sqrt": divided(lambda w: w.pow(2).sum(1, keepdim=True).sqrt()),
    "sum of both axes": divided(lambda w: w.pow(2).sum((0, 1), keepdim=True).sqrt()),
    "sum of everything": divided(lambda w: (w * w).sum().sqrt()),
    "sum of a flat view": divided(lambda w: w.reshape(-1).abs().sum()),
    "sum of absolutes": divided(lambda w: w.abs().sum(1, keepdim=True)),
    "sum of a transpose": divided(lambda w: w.t().square().sum(0)[:, None]),
    "sum twice": divided(lambda w: w.square().sum(0).sum()),
    "plain sum": weight(lambda r: r.w - r.w.sum(1, keepdim=True)),
    "norm": divided(lambda w: w.norm(dim=1, keepdim=True)),
    "norm of all": divided(lambda w: w.norm()),
    "vector norm": divided(lambda w: torch.linalg.vector_norm(w, 1, dim=1, keepdim=True)),
    "largest": divided(lambda w: torch.linalg.vector_norm(w, torch.inf, dim=1, keepdim=True)),
    "matrix norm": divided(lambda w: torch.linalg.matrix_norm(w)),
    "spectral norm": divided(lambda w: torch.linalg.matrix_norm(w, 2)),
    "normalize": weight(lambda r: functional.normalize(r.w)),
    "weight norm": weight(lambda r: torch._weight_norm(r.w, r.made[:, None], 0)),
    "renorm": weight(lambda r: torch.renorm(r.w, 2, 0, 1.0)),
    "mean of squares": divided(lambda w: (w * w).mean(1, keepdim=True).sqrt()),
    "std": divided(lambda w: w.std(1, keepdim=True)),
    "standardised": weight(lambda r: standardised(r.w)),
    "logsumexp": divided(lambda w: w.logsumexp(1, keepdim=True)),
    "softmax": weight(lambda r: r.w.softmax(1)),
    "amax": divided(lambda w: w.abs().amax(1, keepdim=True)),
    "product of all": divided(lambda w: w.prod(1, keepdim=True)),
    "layer norm": weight(lambda r: functional.layer_norm(r.w, r.w.shape[1:])),
    "cosine": divided(lambda w: functional.cosine_similarity(w, w.cos(), dim=1)[:, None]),
    "distance": divided(lambda w: torch.cdist(w, w.cos()).diagonal()[:, None]),
    "item": divided(lambda w: w.square().sum().item()),
    # products
    "w @ w.T": weight(lambda r: (r.w @ r.w.T) @ r.w),
    "einsum": divided(lambda w: torch.einsum("oi,oi->o", w, w)[:, None]),
    "einsum of all": divided(lambda w: torch.einsum("oi,oi->", w, w)),
    "dot": divided(lambda w: w.view(-1).dot(w.view(-1))),
    "vdot of rows": divided(lambda w: torch.linalg.vecdot(w, w)[:, None]),
    "batched": divided(lambda w: torch.bmm(w[:, None], w[:, :, None]).view(-1, 1)),
    "convolved": divided(
        lambda w: functional.conv2d(w[:, :, None, None], w[:1, :, None, None].abs()).flatten(1)
    ),
    "grouped": divided(
        lambda w: functional.conv1d(w.abs()[..., None], torch.ones(2, 4, 1).to(w), groups=2)[:, 1]
    ),
    "pairs": weight(lambda r: torch.einsum("oi,pi->op", r.w, r.other) @ r.other),
    "low rank and rows": weight(
        lambda r: r.left @ r.right / (r.left @ r.right).square().sum(1, True)
    ),
    "inverse": weight(lambda r: r.w @ torch.linalg.inv(r.square)),
    "power": weight(lambda r: r.w @ torch.matrix_power(r.square, 3)),
    "exponential": weight(lambda r: r.w @ torch.matrix_exp(r.square)),
    "two parameters": weight(lambda r: r.w / (r.w @ r.scale)[:, None]),
    "buffer and parameter": weight(lambda r: r.w / (r.w * r.mask).square().sum(1, keepdim=True)),
    "power iteration": weight(power_iteration),
    "written by slices": weight(written),
    # beside activations
    "ratio": lambda r, h, m: functional.linear(h, r.w) / r.w.abs().sum(),
    "weighted mean": lambda r, h, m: (h * r.scale).sum(1, keepdim=True) / r.scale.sum() + r.made,
    "count": lambda r, h, m: (
        (h.sum(1, keepdim=True) / torch.ones_like(h).sum(1, keepdim=True)) * r.made
    ),
    "filled": lambda r, h, m: (
        functional.linear(h, r.w) / torch.empty_like(h).fill_(2).sum(1)[:, None]
    ),
    "partial": lambda r, h, m: (
        functional.linear(h, r.w) / functional.linear(torch.ones_like(h), r.w.abs())
    ),
    "expanded": lambda r, h, m: (
        functional.linear(h, r.w) / (torch.ones_like(h) * r.scale).sum(1, keepdim=True)
    ),
    "zero times": lambda r, h, m: (
        functional.linear(h, r.w) / (0 * h + r.scale).sum(1, keepdim=True)
    ),
    "overwritten": lambda r, h, m: (
        functional.linear(h, r.w) / h.clone().copy_(r.scale).sum(1, keepdim=True)
    ),
    "out": lambda r, h, m: (
        functional.linear(h, r.w) / torch.mul(r.scale, r.scale, out=h[0].clone()).sum()
    ),
    "hidden bias": lambda r, h, m: functional.linear(h, r.w, (r.w @ r.scale)),
    "read by both": lambda r, h, m: functional.linear(h, r.w) + r.w @ r.scale,
    "prototypes": lambda r, h, m: h @ r.w.T - r.w.square().sum(1) / 2,
    "squared distance": lambda r, h, m: (
        h.square().sum(1, keepdim=True) - 2 * h @ r.w.T + r.w.square().sum(1)
    ),
}


@pytest.mark.parametrize("name", SUMMED)
def test_a_sum_of_weights_alone_freezes_what_it_sums(name: str) -> None:
    assert verdict(SUMMED[name]) == "frozen"


def padded(r: Any, h: Tensor, m: Tensor) -> Tensor:
    """What batch norm makes of zero goes where a convolution pads, as in SDT-V2."""
    bn = r.bn
    border = bn.bias - bn.running_mean * bn.weight / (bn.running_var + bn.eps).sqrt()
    tokens = functional.pad(bn(h).T[None], (1, 1))
    tokens[:, :, :1] = border[:, None]
    tokens[:, :, -1:] = border[:, None]
    return functional.conv1d(tokens * m[:1].T, r.w[:, :, None].expand(-1, -1, 3))[0].T


def recurrent(r: Any, h: Tensor, m: Tensor) -> Tensor:
    state = torch.zeros(1, h.shape[1]).to(h)
    for row in h.split(1):
        state = (row + state @ r.square.T).tanh() * m[:1]
    return functional.linear(state, r.w)


def by_slices(r: Any, h: Tensor, m: Tensor) -> Tensor:
    memory = torch.zeros_like(h)
    memory[:2] = h[:2]
    memory[2:].add_(h[2:])
    return functional.linear(memory, r.w)


def attention(r: Any, h: Tensor, m: Tensor) -> Tensor:
    query, key = h * r.scale, (h + r.scale) * m
    return functional.linear(query @ key.T @ h, r.w)


def tokens(r: Any, h: Tensor, m: Tensor) -> Tensor:
    """A learned token in front of those of the image, and positions added to all."""
    both = torch.cat([r.scale[None], h]) + r.square[:6]
    both = both * m[:1]
    return functional.linear((both @ both.T) @ both, r.w)[1:]


KEPT_APART: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "plain": weight(lambda r: r.w),
    "scaled": weight(lambda r: r.w * r.scale),
    "masked": weight(lambda r: r.w * r.mask),
    "sum of two": weight(lambda r: r.w + 0.5 * r.other),
    "squared": weight(lambda r: r.w.square().exp()),
    "cast": weight(lambda r: r.w.float().double()),
    "transposed": weight(lambda r: r.w.t().contiguous().t()),
    "expanded": weight(lambda r: r.scale.expand(6, -1)),
    "scaled outputs": weight(lambda r: r.w * (r.made / (r.made.square() + 1e-5).sqrt())[:, None]),
    "stored norm": weight(lambda r: r.w * r.u[:, None]),
    "norm over the outputs": divided(lambda w: w.square().sum(0).sqrt()),
    "mean over the outputs": weight(lambda r: r.w - r.w.mean(0, keepdim=True)),
    "buffer of another width": weight(lambda r: r.w / (r.mask.sum(1, keepdim=True) + 1)),
    "low rank": weight(lambda r: r.left @ r.right),
    "product over another axis": weight(lambda r: functional.linear(r.w, r.square)),
    "with a bias": weight(lambda r: torch.addmm(r.scale, r.w, r.square)),
    "gram": lambda r, h, m: functional.linear((h @ (r.w.T @ r.w)) * m, r.w),
    "convolution": lambda r, h, m: functional.conv1d(h[..., None], r.w[..., None])[..., 0],
    "position": lambda r, h, m: functional.linear((h + r.scale) * m, r.w),
    "weighted sum": lambda r, h, m: (h * r.scale).sum(1, keepdim=True) * r.made,
    "normalised by activations": lambda r, h, m: (
        functional.linear(h, r.w) / (h.abs().sum(1, keepdim=True) + 1)
    ),
    "keys from weights": lambda r, h, m: functional.linear(((h @ r.w.T) @ r.w) * m, r.w),
    "queries from weights": lambda r, h, m: (functional.linear(r.w, r.square) @ h.T).T,
    "weights from activations": lambda r, h, m: (
        functional.conv1d(r.w[..., None], (h * r.scale)[..., None])[..., 0].T
    ),
    "padded": padded,
    "recurrent": recurrent,
    "by slices": by_slices,
    "attention": attention,
    "tokens": tokens,
}


@pytest.mark.parametrize("name", KEPT_APART)
def test_weights_that_are_not_summed_over_channels_leave_them_free(name: str) -> None:
    assert verdict(KEPT_APART[name]) == "exact"


def test_the_reason_says_where_and_what_to_do() -> None:
    for name, operator in (("pow, sum, sqrt", "sum"), ("norm", "linalg_vector_norm")):
        graph = trace(Net(SUMMED[name]).double().eval(), torch.randn(5, 3).double())
        assert graph["c"].reason == (
            f"{operator} over the axis of weights alone: compute it once and store the result as "
            f"a buffer or parameter (aten::{operator} in module 'reader')"
        )
    graph = trace(Net(SUMMED["w @ w.T"]).double().eval(), torch.randn(5, 3).double())
    reason = made_by(graph, "c").reason
    assert reason.startswith("a product over the axis of weights alone: compute it once")
    assert reason.endswith("(aten::mm in module 'reader')")


PLAIN = ("pow, sum, sqrt", "dot", "ratio", "weighted mean", "count", "partial", "prototypes")


@pytest.mark.parametrize("name", PLAIN)
def test_the_check_leaves_weights_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a trace to let one pass, the check would still find that the cut is not exact."""
    monkeypatch.setattr(Call, "weights_alone", lambda *_: False)
    assert verdict(SUMMED[name]) == "refused"


class LowRank(nn.Module):
    """Two layers, applied one by one or multiplied out first, or both."""

    def __init__(self, *, apart: bool, merged: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 5, bias=False), nn.Linear(5, 6, bias=False)
        self.apart, self.merged = apart, merged

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.inner(x)) if self.apart else torch.zeros(())
        if self.merged:
            y = y + functional.linear(x, self.outer.weight @ self.inner.weight)
        return y


@pytest.mark.parametrize(("apart", "merged"), [(True, False), (False, True), (True, True)])
def test_a_rank_is_free_only_where_activations_alone_pass_it(apart: bool, merged: bool) -> None:
    rank = LowRank(apart=apart, merged=merged)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), rank, nn.ReLU(), nn.Linear(6, 4)).eval()
    graph = trace(net, torch.randn(5, 3))
    assert made_by(graph, "0").prunable
    assert verify(net, graph) == []
    axes = {str(m) for g in graph.prunable() for m in g.members}
    assert ("2.inner.weight[0]" in axes, "2.outer.weight[1]" in axes) == (not merged, not merged)
    if apart and merged:
        assert "module '2'" in made_by(graph, "2.inner").reason
        assert "of weights alone" in made_by(graph, "2.inner").reason


class Standardised(nn.Conv1d):
    """A convolution whose weight has mean zero and variance one for every output."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.sum((1, 2), keepdim=True) / w[0].numel()
        w = w / (w.square().sum((1, 2), keepdim=True) + 1e-5).sqrt()
        return functional.conv1d(x, w, self.bias, padding=1)


class Cosine(nn.Module):
    """A classifier by the angle between the features and one vector for every class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x, functional.normalize(self.weight))


READERS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv1d(8, 6, 3, padding=1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv1d(8, 6, 3, padding=1)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv1d(8, 6, 1)),
    "weight norm by a hook": lambda: weight_norm(nn.Conv1d(8, 6, 3, padding=1)),
    "spectral norm by a hook": lambda: spectral_norm(nn.Conv1d(8, 6, 3, padding=1)),
    "standardised": lambda: Standardised(8, 6, 3, padding=1),
    "cosine": Cosine,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", READERS)
def test_layers_that_normalise_their_weight_freeze_what_they_read(name: str) -> None:
    with torch.no_grad():
        reader = READERS[name]()
    net = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), reader, nn.ReLU(), nn.Conv1d(6, 4, 1))
    graph = trace(net.eval(), torch.randn(2, 3, 7))
    group = made_by(graph, "0")
    assert group.status == "frozen"
    assert "module '2" in group.reason
    assert verify(net, graph) == []


STEPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "square": lambda r, w: w.square(),
    "scale": lambda r, w: w * r.scale,
    "mask": lambda r, w: w * r.mask,
    "add": lambda r, w: w + r.other.sin(),
    "outputs": lambda r, w: w * r.made[:, None],
    "cast": lambda r, w: w.float().double(),
    "turn": lambda r, w: w.t().contiguous().t(),
    "lift": lambda r, w: w[None, :, None].clone()[0, :, 0],
    "stack": lambda r, w: torch.stack([w, r.other]).sum(0),
    "expand": lambda r, w: w[None].expand(3, -1, -1).sum(0),
    "write": lambda r, w: torch.empty_like(w).copy_(w),
    "down": lambda r, w: w / w.square().sum(0, keepdim=True).add(1).sqrt(),
}
SUMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "across": lambda r, w: w / w.abs().sum(1, keepdim=True),
    "all": lambda r, w: w - w.sum(),
    "product": lambda r, w: (w @ r.other.T) @ r.other,
    "norm": lambda r, w: w / w.norm(),
    "flat": lambda r, w: w / w.reshape(-1).dot(w.reshape(-1)),
}


@given(st.lists(st.sampled_from([*STEPS, *SUMS]), max_size=5), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_any_chain_of_steps_is_frozen_or_cut_exactly(names: list[str], seed: int) -> None:
    """Frozen where a step sums over the channels of weights, exact (so not frozen) elsewhere."""

    def chain(r: Any, h: Tensor, m: Tensor) -> Tensor:
        w = r.w
        for name in names:
            w = (STEPS | SUMS)[name](r, w)
        return functional.linear(h, w)

    assert verdict(chain, seed) == ("frozen" if SUMS.keys() & set(names) else "exact")

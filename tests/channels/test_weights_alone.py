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
from torch.nn.utils import parametrizations

from primesvt.channels import remove_channels, trace
from primesvt.channels.symbols import Freeze

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


def verdict(function: Callable[[Any, Tensor, Tensor], Tensor], seed: int = 0) -> str:
    """``frozen`` or ``exact``; anything between the two fails here."""
    torch.manual_seed(seed)
    model, x = Net(function).double().eval(), torch.randn(5, 3).double()
    for tensor in model.reader.bn.parameters():
        nn.init.uniform_(tensor, 0.5, 1.5)
    nn.init.uniform_(model.reader.bn.running_mean, 0.5, 1.5)
    graph = trace(model, x)
    group = next(g for g in graph if any(str(m) == "c.weight[0]" for m in g.members))
    if group.status == "frozen":
        assert "aten::" in group.reason
        assert "module 'reader" in group.reason
        return "frozen"
    assert group.status == "free"
    refusals = graph.check(model, [group.name])
    if refusals:
        print(refusals)
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
        functional.linear(r.w, h[:1] * r.scale).T + functional.linear(h, r.w)
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

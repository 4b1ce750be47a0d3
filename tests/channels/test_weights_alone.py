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
    if graph["c"].status == "frozen":
        assert "aten::" in graph["c"].reason
        assert "module 'reader" in graph["c"].reason
        return "frozen"
    assert graph["c"].status == "free"
    refusals = graph.check(model, ["c"])
    if refusals:
        assert all(r.module.startswith("reader") and "aten." in r.reason for r in refusals)
        return "refused"
    pruned = copy.deepcopy(model)
    remove_channels(pruned, graph, {"c": KEPT})
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
    "einsum of pairs": weight(lambda r: torch.einsum("oi,pi,pj->oj", r.w, r.other, r.other)),
    "dot": divided(lambda w: w.view(-1).dot(w.view(-1))),
    "vdot of rows": divided(lambda w: torch.linalg.vecdot(w, w)[:, None]),
    "batched": divided(lambda w: torch.bmm(w[:, None], w[:, :, None]).view(-1, 1)),
    "linear": weight(lambda r: functional.linear(r.w, r.square)),
    "with a bias": weight(lambda r: torch.addmm(r.scale, r.w, r.square)),
    "convolved": divided(lambda w: functional.conv2d(w[None, :, :, None].mT, w[:, :, None, None].abs())),
    "inverse": weight(lambda r: r.w @ torch.linalg.inv(r.square)),
    "power": weight(lambda r: r.w @ torch.matrix_power(r.square, 3)),
    "exponential": weight(lambda r: r.w @ torch.matrix_exp(r.square)),
    "two parameters": divided(lambda w: w) and weight(lambda r: r.w / (r.w @ r.scale)[:, None]),
    "a buffer": weight(lambda r: r.w / (r.mask.sum(1, keepdim=True) + 1)),
    "buffer and parameter": weight(lambda r: r.w / (r.w * r.mask).square().sum(1, keepdim=True)),
    "power iteration": weight(power_iteration),
    "written by slices": weight(written),
    # beside activations
    "ratio": lambda r, h, m: functional.linear(h, r.w) / r.w.abs().sum(),
    "weighted mean": lambda r, h, m: (h * r.scale).sum(1, keepdim=True) / r.scale.sum() + r.made,
    "count": lambda r, h, m: (h.sum(1, keepdim=True) / torch.ones_like(h).sum(1, keepdim=True)) * r.made,
    "filled": lambda r, h, m: functional.linear(h, r.w) / torch.empty_like(h).fill_(2).sum(1)[:, None],
    "partial": lambda r, h, m: functional.linear(h, r.w) / functional.linear(torch.ones_like(h), r.w.abs()),
    "expanded": lambda r, h, m: functional.linear(h, r.w) / r.scale.expand_as(h).sum(1, keepdim=True),
    "zero times": lambda r, h, m: functional.linear(h, r.w) / (0 * h + r.scale).sum(1, keepdim=True),
    "overwritten": lambda r, h, m: functional.linear(h, r.w)
    / h.clone().copy_(r.scale).sum(1, keepdim=True),
    "out": lambda r, h, m: functional.linear(h, r.w)
    / torch.mul(r.scale, r.scale, out=h[0].clone()).sum(),
    "hidden bias": lambda r, h, m: functional.linear(h, r.w, (r.w @ r.scale)),
    "read by both": lambda r, h, m: functional.linear(h, r.w) + r.w @ r.scale,
    "prototypes": lambda r, h, m: h @ r.w.T - r.w.square().sum(1) / 2,
    "squared distance": lambda r, h, m: h.square().sum(1, keepdim=True) - 2 * h @ r.w.T + r.w.square().sum(1),
    "projected queries": lambda r, h, m: functional.linear(r.w, r.square) @ (h.T @ h) @ r.square[:, :6].sum(0) * h.sum(1, keepdim=True) if False else (functional.linear(r.w, r.square) @ h.T).T,
}


@pytest.mark.parametrize("name", SUMMED)
def test_a_sum_of_weights_alone_freezes_what_it_sums(name: str) -> None:
    assert verdict(SUMMED[name]) in ("frozen", "refused")

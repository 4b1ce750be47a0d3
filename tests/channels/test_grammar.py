"""Forwards built at random from layers, views, heads and loops: what the trace frees is exact.

The truth does not come from the trace: every block says itself which rows of which layers stand at
each place that some layer or product reads, and those of removed rows are set to zero there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from primesvt.channels import remove_channels, trace, verify

Row = tuple[str, int]
Rows = list[frozenset[Row]]  # for each place on the channel axis, the rows that meet there
ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sigmoid,
    torch.tanh,
    lambda t: t.clone().abs_(),
    lambda t: functional.hardswish(t, inplace=False),
    lambda t: t.sigmoid() * (t > 0),
)


class Read(nn.Module):
    """Stands in front of whatever reads channels along the last axis, and can silence them."""

    rows: Rows
    keep: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.keep is None else x * self.keep


def made(layer: str, count: int) -> Rows:
    return [frozenset({(layer, row)}) for row in range(count)]


def met(*tensors: Rows) -> Rows:
    return [frozenset().union(*rows) for rows in zip(*tensors, strict=True)]


class Block(nn.Module):
    """Takes and gives ``[B, N, C]``."""

    def __init__(self, draw: st.DrawFn, width: int) -> None:
        super().__init__()
        self.width = width
        self.out = draw(st.sampled_from((width, 6, 8)))
        self.shortcut = self.out == width and draw(st.booleans())
        self.act = draw(st.sampled_from(ACTIVATIONS))
        self.first, self.ask, self.last = Read(), Read(), Read()
        self.build(draw)

    def build(self, draw: st.DrawFn) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return x + y if self.shortcut else y

    def inner(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def label(self, name: str, rows: Rows) -> Rows:
        """Say which rows stand in front of every reader; the rows of the block's result."""
        self.first.rows = rows
        self.label_inside(name)
        out = made(f"{name}.project", self.out)
        return met(rows, out) if self.shortcut else out

    def label_inside(self, name: str) -> None:
        raise NotImplementedError


class Hidden(Block):
    """A hidden width between two layers, taken through an operation that moves channels."""

    WAYS = ("plain", "loop", "swap", "glu", "repeat", "tile", "shuffle", "ranked", "norm", "slide")

    def build(self, draw: st.DrawFn) -> None:
        self.way = draw(st.sampled_from(self.WAYS))
        self.size = draw(st.sampled_from((4, 6, 12)))
        self.part = nn.Parameter(torch.randn(draw(st.integers(1, self.size - 1))))
        self.layer = nn.Linear(self.width, self.size)
        self.norm = nn.BatchNorm1d(self.size)
        self.slide = nn.Conv1d(self.size, self.size, 3, groups=self.size, padding=1)
        factor = {"glu": 0.5, "repeat": 2, "tile": 2}.get(self.way, 1)
        self.project = nn.Linear(int(self.size * factor), self.out)

    def inner(self, x: Tensor) -> Tensor:
        return self.project(self.last(self.act(self.move(self.layer(self.first(x))))))

    def move(self, h: Tensor) -> Tensor:
        if self.way == "loop":
            state, out = torch.zeros_like(h[:, 0]), []
            for step in h.unbind(1):
                state = state / 2 + step
                out.append(state * (state > 0))
            return torch.stack(out, 1)
        if self.way == "swap":
            count = len(self.part)
            a, b = h.split([count, h.shape[-1] - count], -1)
            return torch.cat([b, a * self.part], -1)
        if self.way == "ranked":
            best = self.ask(h).sum(-1).topk(2, 1)[1]
            return h.gather(1, best[..., None].expand(-1, -1, h.shape[-1])).sum(1, True) + h
        if self.way == "norm":
            return self.norm(h.mT).mT
        if self.way == "slide":
            return self.slide(h.transpose(1, 2)).transpose(1, 2)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "plain": lambda t: t,
            "glu": lambda t: functional.glu(t, -1),
            "repeat": lambda t: t.repeat_interleave(2, -1),
            "tile": lambda t: t.repeat(1, 1, 2),
            "shuffle": lambda t: t.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
        }
        return ways[self.way](h)

    def label_inside(self, name: str) -> None:
        rows, half = made(f"{name}.layer", self.size), self.size // 2
        self.ask.rows = rows
        if self.way == "swap":
            rows = rows[len(self.part) :] + rows[: len(self.part)]
        elif self.way == "glu":
            rows = met(rows[:half], rows[half:])
        elif self.way == "repeat":
            rows = [row for row in rows for _ in range(2)]
        elif self.way == "tile":
            rows = rows + rows
        elif self.way == "shuffle":
            rows = [rows[a * half + b] for b in range(half) for a in range(2)]
        self.last.rows = rows


class Attention(Block):
    """Queries, keys and values in heads, multiplied in one of several ways of writing it."""

    WAYS = ("matmul", "einsum", "fused", "linear", "dot")

    def build(self, draw: st.DrawFn) -> None:
        self.way = draw(st.sampled_from(self.WAYS))
        self.heads, self.size = draw(st.sampled_from(((1, 3), (2, 2), (2, 3), (3, 4))))
        inner = self.heads * self.size
        self.q, self.k, self.v = (nn.Linear(self.width, inner) for _ in range(3))
        self.table = nn.Parameter(torch.randn(7, self.heads))
        self.project = nn.Linear(inner, self.out)

    def inner(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = self.ask(self.act(self.q(x))), self.act(self.k(x)), self.act(self.v(x))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.project(self.last(self.attend(q, k, v).transpose(1, 2).flatten(2)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.way == "fused":
            return functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        if self.way == "linear":
            return q @ (k.mT @ v) / 8
        if self.way == "dot":
            return torch.einsum("bhnd,bhnd->bhn", q, k)[..., None] * v
        if self.way == "einsum":
            seen = torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1)
            return torch.einsum("bhnm,bhmd->bhnd", seen, v)
        tokens = torch.arange(q.shape[2])
        bias = self.table[tokens[:, None] - tokens + 3].permute(2, 0, 1)
        return (q @ k.mT / 4 + bias).softmax(-1) @ v

    def label_inside(self, name: str) -> None:
        inner = self.heads * self.size
        self.ask.rows = met(made(f"{name}.q", inner), made(f"{name}.k", inner))
        self.last.rows = made(f"{name}.v", inner)


class Net(nn.Module):
    """A first layer, blocks, and a classifier of the mean token."""

    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__()
        width = draw(st.sampled_from((4, 6)))
        self.stem, self.blocks = nn.Linear(3, width), nn.ModuleList()
        for _ in range(draw(st.integers(1, 3))):
            self.blocks.append(draw(st.sampled_from((Hidden, Attention)))(draw, width))
            width = self.blocks[-1].out
        self.last, self.head = Read(), nn.Linear(width, 2)
        rows = made("stem", self.stem.out_features)
        for i, block in enumerate(self.blocks):
            rows = block.label(f"blocks.{i}", rows)
        self.last.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).sum(1))

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        return ((n, m) for n, m in self.named_modules() if isinstance(m, nn.Linear | nn.Conv1d))


def silenced(net: Net, pruned: Net) -> Net:
    """The original with zeros in front of every reader of rows that the pruned one lacks.

    Biases are random, so that they tell which rows are left.
    """
    gone = {
        (name, row)
        for name, layer in net.layers()
        for row in torch.isin(layer.bias, pruned.get_submodule(name).bias).logical_not().nonzero()
        for row in row.tolist()
    }
    masked = copy.deepcopy(net)
    for read in (m for m in masked.modules() if isinstance(m, Read)):
        lost = [len(rows & gone) for rows in read.rows]
        assert all(n in (0, len(rows)) for n, rows in zip(lost, read.rows, strict=True))
        read.keep = torch.tensor([n == 0 for n in lost]).double()
    return masked


@settings(
    deadline=None,
    derandomize=True,
    max_examples=int(os.environ.get("PRIMESVT_EXAMPLES", "12")),
    print_blob=False,
    phases=[Phase.generate],
)
@given(st.data())
def test_groups_of_any_forward_are_all_found_and_cut_exactly(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    net = Net(data.draw).double().eval()
    x = torch.randn(2, 4, 3).double()
    graph = trace(net, x)
    assert graph.notes == ()
    listed = {m.module for group in graph for m in group.producers}
    assert {name for name, _ in net.layers()} - listed <= {
        f"blocks.{i}.slide" for i, _ in enumerate(net.blocks)
    }
    closed = [g for g in graph if g.status != "free" and not g.name.startswith("head")]
    assert closed == []
    assert verify(net, graph) == []
    rng = np.random.default_rng(0)
    for group in (g for g in graph if g.kind != "heads" and g.status == "free" and g.size > 1):
        count = int(rng.integers(1, group.size))
        kept = [rng.permutation(group.size)[:count] for _ in range(group.positions)]
        pruned = copy.deepcopy(net)
        remove_channels(pruned, graph, {group.name: kept})
        with torch.no_grad():
            found, wanted = pruned(x), silenced(net, pruned)(x)
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12), f"{group} keeps {kept}"

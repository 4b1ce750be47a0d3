"""Chains of views: whatever becomes of an axis, a cut is exact, or it is refused; never wrong.

The truth does not come from the trace: the same chain runs on a tensor of channel numbers, and the
rows that really went from the first layer are read off its weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from primesvt.channels import remove_channels, trace, verify

BATCH = 2


@dataclass(frozen=True)
class Step:
    """One width-free operation: how it is written, and what it does."""

    text: str
    run: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        return self.text


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _unflatten(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape) - 1))
    count = draw(st.sampled_from(divisors(shape[dim])))
    sizes = draw(st.sampled_from([(count, -1), (-1, count)]))
    return Step(f"unflatten({dim}, {sizes})", lambda t: t.unflatten(dim, sizes))


def _view(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    """A view that writes every size but one into the code."""
    total = int(np.prod(shape[1:]))
    first = draw(st.sampled_from(divisors(total)))
    second = draw(st.sampled_from(divisors(total // first)))
    sizes = draw(st.permutations([first, second, -1]))
    return Step(f"reshape(B, {list(sizes)})", lambda t: t.reshape(t.shape[0], *sizes))


def _flatten(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    start = draw(st.integers(1, len(shape) - 1))
    stop = draw(st.integers(start, len(shape) - 1))
    return Step(f"flatten({start}, {stop})", lambda t: t.flatten(start, stop))


def _transpose(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    a, b = draw(st.integers(1, len(shape) - 1)), draw(st.integers(1, len(shape) - 1))
    return Step(f"transpose({a}, {b})", lambda t: t.transpose(a, b))


def _permute(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    order = [0, *draw(st.permutations(range(1, len(shape))))]
    return Step(f"permute({order})", lambda t: t.permute(order))


def _unsqueeze(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape)))
    return Step(f"unsqueeze({dim})", lambda t: t.unsqueeze(dim))


def _squeeze(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    ones = [d for d in range(1, len(shape)) if shape[d] == 1]
    if not ones or len(shape) == 2:
        return Step("clone()", lambda t: t.clone())
    dim = draw(st.sampled_from(ones))
    return Step(f"squeeze({dim})", lambda t: t.squeeze(dim))


def _chunk_cat(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape) - 1))
    count = draw(st.sampled_from(divisors(shape[dim])[:3]))
    order = draw(st.permutations(range(count)))
    to = draw(st.integers(1, len(shape) - 1))

    def run(t: Tensor) -> Tensor:
        parts = t.chunk(count, dim)
        return torch.cat([parts[i] for i in order], to)

    return Step(f"chunk({count}, {dim}) then cat({list(order)}, {to})", run)


def _split_cat(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape) - 1))
    at = draw(st.integers(0, shape[dim]))

    def run(t: Tensor) -> Tensor:
        a, b = t.split([at, t.shape[dim] - at], dim)
        return torch.cat([b, a], dim)

    return Step(f"split([{at}, rest], {dim}) then cat(b, a)", run)


def _slice(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape) - 1))
    start = draw(st.integers(0, shape[dim] - 1))
    stop = draw(st.integers(start + 1, shape[dim]))
    return Step(f"narrow({dim}, {start}:{stop})", lambda t: t.narrow(dim, start, stop - start))


def _from_the_end(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    size = shape[-1]
    n = draw(st.integers(1, size))
    return Step(f"[..., -{n}:]", lambda t: t[..., -n:])


def _flip(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape) - 1))
    return Step(f"flip({dim})", lambda t: t.flip(dim))


def _stack(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape)))
    return Step(f"stack([t, t], {dim})", lambda t: torch.stack([t, t], dim))


def _select(draw: st.DrawFn, shape: tuple[int, ...]) -> Step:
    dim = draw(st.integers(1, len(shape) - 1))
    if len(shape) == 2:
        return Step("clone()", lambda t: t.clone())
    index = draw(st.integers(0, shape[dim] - 1))
    return Step(f"select({dim}, {index})", lambda t: t.select(dim, index))


PLAIN = (_unflatten, _unflatten, _flatten, _transpose, _permute, _unsqueeze, _squeeze)
ROUGH = (*PLAIN, _view, _chunk_cat, _split_cat, _slice, _from_the_end, _flip, _stack, _select)


@st.composite
def chains(draw: st.DrawFn, steps: tuple[Any, ...]) -> tuple[int, list[Step], tuple[int, ...]]:
    """A width, a chain of steps that fits it, and the shape that comes out (batch left out)."""
    width = draw(st.sampled_from((1, 2, 3, 4, 6, 8, 12)))
    probe, chain = torch.zeros(BATCH, width), []
    for _ in range(draw(st.integers(1, 5))):
        if probe.dim() > 5:
            break
        step = draw(st.sampled_from(steps))(draw, tuple(probe.shape))
        chain.append(step)
        probe = step.run(probe)
    return width, chain, tuple(probe.shape[1:])


class Net(nn.Module):
    """A linear layer, the chain, and readers of what comes out."""

    def __init__(self, width: int, chain: list[Step], shape: tuple[int, ...], reader: str) -> None:
        super().__init__()
        self.made = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.spoil = nn.Identity()  # where a test silences the reader
        self.chain, self.reader = chain, reader
        self.read = nn.Linear(int(np.prod(shape)) if reader == "flat" else shape[-1], 4, bias=False)

    def views(self, t: Tensor) -> Tensor:
        for step in self.chain:
            t = step.run(t)
        return t

    def forward(self, x: Tensor) -> Tensor:
        t = self.spoil(self.views(self.norm(self.made(x)).sigmoid()))
        if self.reader == "flat":
            return self.read(t.flatten(1))
        if self.reader == "last":
            return self.read(t).sigmoid()
        tokens = t.flatten(1, -2) if t.dim() > 2 else t.unsqueeze(1)
        return self.read(tokens).sum(1) * (tokens @ tokens.transpose(1, 2)).sum((1, 2))[:, None]


def numbers(net: Net, width: int) -> Tensor:
    """The channel that stands at every place of the reader's input."""
    return net.views(torch.arange(width, dtype=torch.float64).expand(BATCH, width))


def agree(net: Net, width: int, x: Tensor, rng: np.random.Generator) -> tuple[int, int]:
    """Cut every allowed group; (groups cut, groups refused), or fail if a cut is silently wrong."""
    graph = trace(net, x)
    names = [g.name for g in graph]
    assert len(set(names)) == len(names), f"names are not unique: {names}"
    free = [g for g in graph if g.status == "free" and g.kind != "heads" and g.size > 1]
    refused = {r.group for r in verify(net, graph)}
    for group in free:
        if group.name in refused:
            continue
        count = int(rng.integers(1, group.size))
        kept = [rng.permutation(group.size)[:count] for _ in range(group.positions)]
        pruned, masked = copy.deepcopy(net), copy.deepcopy(net)
        before = net.made.weight.detach()
        freed = graph.freed({group.name: kept})
        remove_channels(pruned, graph, {group.name: kept})
        lost = sum(p.numel() for p in net.parameters()) - sum(
            p.numel() for p in pruned.parameters()
        )
        assert freed.parameters == lost
        rows = {tuple(row.tolist()) for row in pruned.made.weight.detach()}
        gone = [i for i, row in enumerate(before) if tuple(row.tolist()) not in rows]
        blind = ~torch.isin(numbers(net, width), torch.tensor(gone, dtype=torch.float64))
        masked.spoil.register_forward_hook(lambda _m, _a, out, b=blind: out * b.to(out))
        with torch.no_grad():
            wanted, found = masked(x), pruned(x)
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12), f"{group} keeps {kept}"
    return len(free) - len(refused), len(refused)


@settings(
    deadline=None, derandomize=True, max_examples=150, print_blob=False, phases=[Phase.generate]
)
@given(chains(PLAIN), st.sampled_from(("flat", "last", "product")), st.integers(0, 99))
def test_plain_views_are_cut_exactly(chain: Any, reader: str, seed: int) -> None:
    width, steps, shape = chain
    torch.manual_seed(seed)
    net = Net(width, steps, shape, reader).double().eval()
    agree(net, width, torch.randn(BATCH, 3).double(), np.random.default_rng(seed))


@settings(
    deadline=None, derandomize=True, max_examples=250, print_blob=False, phases=[Phase.generate]
)
@given(chains(ROUGH), st.sampled_from(("flat", "last", "product")), st.integers(0, 99))
def test_rough_views_are_cut_exactly_or_refused(chain: Any, reader: str, seed: int) -> None:
    width, steps, shape = chain
    torch.manual_seed(seed)
    net = Net(width, steps, shape, reader).double().eval()
    agree(net, width, torch.randn(BATCH, 3).double(), np.random.default_rng(seed))


@pytest.mark.parametrize("reader", ["flat", "product"])
@pytest.mark.parametrize(
    "step",
    [
        Step("heads", lambda t: t.unflatten(1, (3, -1)).transpose(1, 2)),
        Step("shuffle", lambda t: t.unflatten(1, (3, -1)).transpose(1, 2).flatten(1)),
        Step("halves swapped", lambda t: torch.cat(t.chunk(2, 1)[::-1], 1)),
        Step("ones", lambda t: t[:, None, :, None].transpose(1, 3).squeeze(1).squeeze(-1)),
    ],
)
def test_everyday_chains_are_really_cut(step: Step, reader: str) -> None:
    torch.manual_seed(0)
    net = Net(12, [step], tuple(step.run(torch.zeros(1, 12)).shape[1:]), reader).double().eval()
    cut, refused = agree(net, 12, torch.randn(BATCH, 3).double(), np.random.default_rng(0))
    assert (cut, refused) == (1, 0)

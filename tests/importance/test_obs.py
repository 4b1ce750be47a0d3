"""Greedy removal against brute force: every candidate tried, every solution written out."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from primesvt.calibration.least_squares import DAMPING, damped
from primesvt.channels import remove_channels
from primesvt.importance import keep
from primesvt.importance.obs import obs, product
from primesvt.recovery.refit import refit

from ..families.drawn import SEEDS, examples
from ..lively import FAMILIES, Lively, free, lively, watched


def chain(inputs: int, hidden: int, outputs: int, seed: int, *, samples: int = 60) -> Lively:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).eval()
    return watched(net, torch.randn(samples, inputs), batch=16)


def brute(covariance: np.ndarray, weights: np.ndarray) -> list[int]:
    """The removal order: all that are left are tried, each with a least-squares fit of the rest.

    ``covariance`` is damped; the cost of a set is the smallest error of ``W x`` without it.
    """
    size, alive, order = len(covariance), list(range(len(covariance))), []
    while alive:
        costs = {}
        for candidate in alive:
            kept = [c for c in alive if c != candidate]
            gone = [c for c in range(size) if c not in kept]
            block = covariance[np.ix_(gone, gone)]
            if kept:
                cross = covariance[np.ix_(kept, gone)]
                block = block - cross.T @ np.linalg.solve(covariance[np.ix_(kept, kept)], cross)
            costs[candidate] = float(np.trace(weights[:, gone] @ block @ weights[:, gone].T))
        order.append(min(alive, key=costs.__getitem__))
        alive.remove(order[-1])
    return order


@examples(25)
@given(seed=SEEDS, hidden=st.integers(1, 8), outputs=st.integers(1, 10))
def test_the_order_is_that_of_brute_force(seed: int, hidden: int, outputs: int) -> None:
    one = chain(4, hidden, outputs, seed)
    covariance = damped(one.activity.moments("2").covariance).numpy()
    weights = one.model[2].weight.detach().double().numpy()
    scores = obs(one.evidence, one.graph["0"])
    assert scores.shape == (1, hidden)
    assert np.argsort(scores[0]).tolist() == brute(covariance, weights)


def test_the_damping_rule_is_the_written_one() -> None:
    matrix = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    expected = matrix + DAMPING * 2.0 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(damped(matrix), expected, rtol=1e-9)
    apart = damped(torch.ones(4, 4, dtype=torch.float64), groups=2)
    assert apart[0, 1] == 1 and apart[0, 2] == apart[1, 3] == 0


@pytest.mark.parametrize("family", ["sdt_v2", "spikformer", "qkformer", "spikingresformer"])
def test_every_head_has_an_order_of_its_own(family: str) -> None:
    one = lively(family)
    several = [g for g in free(one.graph) if g.positions > 1]
    assert several
    for group in several:
        scores = obs(one.evidence, group)
        expected = list(map(float, range(group.size)))
        assert all(sorted(row) == expected for row in scores.tolist())
    assert any(len({tuple(row) for row in obs(one.evidence, g).tolist()}) > 1 for g in several)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_by_brute_force_over_the_attention_map(family: str) -> None:
    """The removed part ``sum_c q_c k_c^T``, written out for every sample and candidate."""
    one = lively(family)
    for group in free(one.graph):
        if one.activity.readers[group.name] or group.size > 12:
            continue
        spikes = [_tokens(one, name) for name in one.activity.neurons(group)]
        found = product(one.evidence, group)
        for position in {0, group.positions - 1}:
            rows = slice(position * group.size, (position + 1) * group.size)
            parts = [s[:, rows] for s in spikes]
            _check_order(parts, np.argsort(found[position]).tolist(), group.size)


def _check_order(parts: list[Tensor], order: list[int], size: int) -> None:
    """Each channel of the order was the cheapest at its turn, or as cheap as the cheapest."""
    gone: list[int] = []
    for chosen in order:
        costs = {}
        for candidate in set(range(size)) - set(gone):
            mask = torch.zeros(size, dtype=torch.float64)
            mask[[*gone, candidate]] = 1
            left = parts[0] * mask[None, :, None]
            part = left.sum(1) if len(parts) == 1 else left.transpose(1, 2) @ parts[1]
            costs[candidate] = float(part.square().sum())
        assert costs[chosen] <= min(costs.values()) * (1 + 1e-9) + 1e-9
        gone.append(chosen)


def _tokens(one: Lively, name: str) -> Tensor:
    """Spikes of a neuron ``[T * B, C, tokens]``."""
    found: list[Tensor] = []
    module = one.model.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, _a, out: found.append(out.double()))
    for _ in one.activity.calibration.run(one.model):
        pass
    handle.remove()
    axis = one.activity.wiring.axes[name]
    rows = []
    for out in found:
        out = out.detach()
        if axis == out.ndim - 1:
            out = out.transpose(-1, -2)
        rows.append(out.flatten(0, 1) if out.ndim > 3 and axis > 1 else out)
    return torch.cat([row.flatten(2) for row in rows])


def twins(seed: int = 0, *, bias: bool = True) -> Lively:
    """Hidden channels 2 and 5 are the same; so are 0 and 3."""
    torch.manual_seed(seed)
    first, last = nn.Linear(5, 6), nn.Linear(6, 4, bias=bias)
    with torch.no_grad():
        for one, other in ((2, 5), (0, 3)):
            first.weight[other], first.bias[other] = first.weight[one], first.bias[one]
    net = nn.Sequential(first, nn.ReLU(), last).eval()
    return watched(net, torch.randn(200, 5), batch=50)


@pytest.mark.parametrize("seed", range(5))
def test_of_twins_one_goes_first_and_the_other_makes_up_for_it(seed: int) -> None:
    one = twins(seed)
    scores = obs(one.evidence, one.graph["0"])
    first, second = np.argsort(scores[0])[:2].tolist()
    assert {first, second} & {2, 5} and {first, second} & {0, 3}
    cuts = {"0": keep(scores, 4)}
    smaller, dropped = copy.deepcopy(one.model), copy.deepcopy(one.model)
    refit(smaller, one.activity, cuts)
    for net in (smaller, dropped):
        remove_channels(net, one.graph, cuts)
    with torch.no_grad():
        wanted = one.model(one.x)
        error, lost = ((net(one.x) - wanted).square().mean() for net in (smaller, dropped))
    assert error < 1e-3 * lost  # what the damping leaves

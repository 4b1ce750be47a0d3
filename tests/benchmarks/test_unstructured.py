"""Unstructured pruning: exactly so many zeros, nothing smaller, on the right weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from evidence.unstructured import sparse_costs, unstructured, weights_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from primesvt.channels import trace
from primesvt.models import create_model
from primesvt.profiling.memory import parameter_bytes, parameter_count
from primesvt.profiling.timing import Pace

from ..families.drawn import examples

QUICK = Pace(seconds=0.0, least=2)


@pytest.fixture(scope="module")
def case():
    model = create_model("sdt_v2_digits", pretrained=True).eval()
    graph = trace(model, torch.rand(2, 1, 8, 8))
    return model, graph, graph.prunable()


def zeros(model: nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in model.parameters())


@examples(12)
@given(sparsity=st.floats(0.0, 0.7), scope=st.sampled_from(("global", "layer")))
def test_exactly_so_many_and_the_smallest(case, sparsity, scope):
    model, graph, groups = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sparse = unstructured(model, graph, groups, sparsity, scope=scope)
    wanted = round(sparsity * parameter_count(model))
    weights = weights_of(model, graph, groups)
    slack = 0 if scope == "global" else len(weights)
    assert abs(zeros(sparse) - zeros(model) - wanted) <= slack
    gone, kept = [], []
    for name, value in sparse.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name])  # the given one is not changed
        if name not in weights:
            assert torch.equal(value, before[name])
            continue
        changed = value != before[name]
        assert (value[changed] == 0).all()
        low, high = before[name][changed].abs(), before[name][~changed].abs()
        gone.append(float(low.max()) if len(low) else 0.0)
        kept.append(float(high.min()) if len(high) else float("inf"))
        if scope == "layer":
            assert gone[-1] <= kept[-1]
    if scope == "global":
        assert max(gone) <= min(kept)


def test_weights_are_those_that_a_structured_plan_shrinks(case):
    model, graph, groups = case
    names = weights_of(model, graph, groups)
    members = {m.tensor for group in groups for m in group.members}
    assert set(names) <= members and all(names[name].ndim >= 2 for name in names)
    assert any("mlp.fc1" in name for name in names)
    assert not any(name.startswith("head") for name in names)
    one = weights_of(model, graph, [next(g for g in groups if g.name.endswith("mlp.fc1"))])
    assert len(one) == 2  # what writes it, and what reads it


def test_nothing_is_saved_in_dense_storage_and_little_in_sparse_rows(case):
    model, graph, groups = case
    sparse = unstructured(model, graph, groups, 0.4)
    found = sparse_costs(
        sparse, model, graph, groups, (torch.rand(2, 1, 8, 8),), batch=2, pace=QUICK
    )
    assert found.dense_bytes == parameter_bytes(model)
    assert found.sparsity == pytest.approx(0.4, abs=1e-4)
    assert found.csr_bytes > found.dense_bytes * (1 - 0.4)  # indices take half of it again
    assert found.time_ratio > 0 and found.times[0].batch == 2
    whole = sparse_costs(model, model, graph, groups, (torch.rand(1, 1, 8, 8),), pace=QUICK)
    assert whole.csr_bytes > 1.5 * whole.dense_bytes and whole.sparsity < 0.001


def test_compressed_rows_by_hand():
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    graph = trace(net, torch.zeros(1, 4))
    sparse = unstructured(net, graph, graph.prunable(), 0.5)  # 18 of 36 values are left
    found = sparse_costs(sparse, net, graph, graph.prunable(), (torch.rand(1, 4),), pace=QUICK)
    assert found.csr_bytes == 18 * 8 + (7 + 3) * 4
    assert found.dense_bytes == 36 * 4


@pytest.mark.parametrize("sparsity", [-0.1, 0.99, 1.5, float("nan")])
def test_more_than_there_is(case, sparsity):
    with pytest.raises(ValueError, match="must lie between 0 and 0"):
        unstructured(*case, sparsity)


def test_unknown_scope(case):
    with pytest.raises(ValueError, match="known: global, layer"):
        unstructured(*case, 0.1, scope="block")


def test_it_still_works_and_keeps_its_kind(case):
    model, graph, groups = case
    double = copy.deepcopy(model).double().train()
    sparse = unstructured(double, graph, groups, 0.3)
    assert sparse.training and next(sparse.parameters()).dtype == torch.float64
    with torch.no_grad():
        assert sparse.eval()(torch.rand(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 10)


def test_figures_are_plain(case):
    model, graph, groups = case
    found = sparse_costs(model, model, graph, groups, (torch.rand(1, 1, 8, 8),), pace=QUICK)
    assert set(dataclasses.asdict(found)) >= {"sparsity", "dense_bytes", "csr_bytes", "time_ratio"}

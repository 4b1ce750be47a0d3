"""What removal means, on networks of random shapes and cuts of every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from primesvt.channels import remove_channels, trace

from ..channels.firing import clone, excite, margin, record, same, state_bytes
from .cases import CASES
from .cuts import flat, gone, random_cuts
from .drawn import NAMES, SEEDS, build, examples, inputs

families = pytest.mark.parametrize("case", CASES, ids=NAMES)


@families
@examples(6)
@given(data=st.data(), seed=SEEDS, streams=st.booleans())
def test_removal_equals_readers_that_ignore_the_channels(
    case: Any, data: st.DataObject, seed: int, streams: bool
) -> None:
    config = data.draw(case.configs())
    model, x = build(config, seed).double(), inputs(case, config).double()
    assume(excite(model, x, seed))
    graph = trace(model, x)
    cuts = random_cuts(graph, np.random.default_rng(seed), streams=streams)
    assume(cuts)
    masked, pruned = clone(model), clone(model)
    for name, kept in cuts.items():
        case.ignore(masked, name, gone(kept, graph[name].size))
    remove_channels(pruned, graph, cuts)
    currents, _, logits = record(masked, x)
    assume(margin(masked, currents) >= 1e-7)
    small, _, small_logits = record(pruned, x)
    assert small.keys() == currents.keys()
    for name, current in currents.items():
        group, axis = case.entering(masked, name) or ("", 0)
        if group in cuts:
            kept = torch.from_numpy(flat(cuts[group], graph[group].size))
            current = current.index_select(axis, kept)
        assert same(small[name], current), f"{name} after {list(cuts)}"
    assert same(small_logits, logits)
    assert pruned.training is False


@families
@examples(3)
@given(data=st.data(), seed=SEEDS)
def test_a_cut_of_nothing_changes_nothing(case: Any, data: st.DataObject, seed: int) -> None:
    config = data.draw(case.configs())
    model, x = build(config, seed), inputs(case, config)
    before, logits = state_bytes(model), model(x)
    graph = trace(model, x)
    assert state_bytes(model) == before
    everything = {g.name: np.tile(np.arange(g.size), (g.positions, 1)) for g in graph.prunable()}
    for cuts in ({}, everything):
        assert graph.freed(cuts).parameters == graph.freed(cuts).buffer_bytes == 0
        assert remove_channels(model, graph, cuts).groups == graph.groups
        assert state_bytes(model) == before
        assert torch.equal(model(x), logits)


@families
@examples(6)
@given(data=st.data(), seed=SEEDS)
def test_cutting_twice_is_cutting_the_union(case: Any, data: st.DataObject, seed: int) -> None:
    """And a network shrinks by just what its graph foretells."""
    config = data.draw(case.configs())
    model, x = build(config, seed), inputs(case, config)
    rng, graph = np.random.default_rng(seed), trace(model, x)
    once, twice = clone(model), clone(model)
    first = random_cuts(graph, rng, streams=True)
    middle = remove_channels(twice, graph, first)
    second = random_cuts(middle, rng, streams=True)
    last = remove_channels(twice, middle, second)
    union = {}
    for name in {**first, **second}:
        rows = np.tile(np.arange(graph[name].size), (graph[name].positions, 1))
        for cuts in (first, second):
            if name in cuts:
                rows = np.take_along_axis(rows, np.sort(cuts[name], axis=1), axis=1)
        union[name] = rows
        assert last.original(name).tolist() == rows.tolist()
        if name in second:
            assert middle.to_original(name, second[name]) == rows.tolist()
    freed = graph.freed(union)
    direct = remove_channels(once, graph, union)
    assert (freed.parameters, freed.parameter_bytes, freed.buffer_bytes) == tuple(
        before - after for before, after in zip(sizes(model), sizes(once), strict=True)
    )
    assert {n: tuple(t.shape) for n, t in once.state_dict().items()} == {
        n: direct.shape(n) for n in once.state_dict()
    }
    for module in once.modules():
        check_attributes(module)
    assert once(x).shape == (len(x), config.num_classes)
    assert state_bytes(once) == state_bytes(twice)
    assert direct.groups == last.groups
    assert [direct.original(g.name).tolist() for g in direct] == [
        last.original(g.name).tolist() for g in last
    ]


def sizes(model: nn.Module) -> tuple[int, int, int]:
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
        sum(b.numel() * b.element_size() for b in buffers),
    )


def check_attributes(module: nn.Module) -> None:
    """The integers that PyTorch's modules keep agree with their tensors."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        made, read = module.weight.shape[:2]
        assert (module.out_channels, module.in_channels) == (made, read * module.groups)
        assert made % module.groups == 0
    elif isinstance(module, nn.Linear):
        assert (module.out_features, module.in_features) == tuple(module.weight.shape)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        assert module.num_features == len(module.weight) == len(module.running_mean)
    elif isinstance(module, nn.LayerNorm):
        assert module.normalized_shape == tuple(module.weight.shape)

"""Activations that are kept save work, never change a bit, and never take more than they may."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primesvt.evaluation.evaluator import DataEvaluator
from primesvt.importance import find_importance
from primesvt.models import SpikingViT
from primesvt.models.forward import copy_of
from primesvt.models.stored_outputs import ActivationCache, CacheKey
from primesvt.profiling.memory import buffer_bytes, parameter_bytes
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober

from ..channels.firing import state_bytes
from ..lively import FAMILIES, free, lively
from .test_variants import prober

ROOM = 100


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 40)), max_size=40))
def test_the_ceiling_holds_and_nothing_is_mixed_up(asked) -> None:
    prefixes, sizes = ActivationCache(ceiling=4 * ROOM), {}
    for block, batch, size in asked:
        place = CacheKey(inputs="x", block=block, before=())
        if prefixes.find(place, batch) is None:
            size = sizes.setdefault((block, batch), size)
            prefixes.keep(place, batch, torch.full((size,), float(10 * block + batch)))
        kept = prefixes.find(place, batch)
        if kept is not None:
            assert kept.tolist() == [float(10 * block + batch)] * sizes[block, batch]
        assert 0 <= prefixes.taken <= prefixes.ceiling
        held = [t for batches in prefixes._kept.values() for t in batches.values()]
        assert prefixes.taken == 4 * sum(map(len, held))


def test_room_is_made_by_the_place_not_asked_for_longest() -> None:
    prefixes = ActivationCache(ceiling=3 * 4)
    old, middle, new = (CacheKey(inputs="x", block=n, before=()) for n in range(3))
    for place in (old, middle, new):
        prefixes.keep(place, 0, torch.zeros(1))
    assert prefixes.find(old, 0) is not None
    prefixes.keep(new, 1, torch.zeros(1))
    assert prefixes.find(middle, 0) is None
    assert prefixes.find(old, 0) is not None and prefixes.find(new, 1) is not None


def test_what_is_larger_than_all_room_drives_nothing_out() -> None:
    prefixes = ActivationCache(ceiling=8)
    small, large = (
        CacheKey(inputs="x", block=1, before=()),
        CacheKey(inputs="x", block=2, before=()),
    )
    prefixes.keep(small, 0, torch.zeros(1))
    prefixes.keep(large, 0, torch.zeros(3))
    assert prefixes.find(small, 0) is not None and prefixes.find(large, 0) is None


@pytest.mark.parametrize("kind", ["none", "refit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_along_a_walk_networks_and_answers_are_those_alone(family: str, kind: str) -> None:
    """Each network goes out from the one before: first from the output on, then from the input on.

    So activations kept in front of a block are asked for again when more is cut in front of it.
    """
    one = lively(family)
    at, fresh = prober(one, kind), prober(one, kind)
    around: dict[str, int] = {}
    groups = [g for g in free(one.graph) if g.size > 2]
    groups = [groups[n] for n in sorted({round(n) for n in np.linspace(0, len(groups) - 1, 8)})]
    for number, group in enumerate(groups[1::2][::-1] + groups[::2]):
        for kept in (1, group.size - 1)[number % 2 :]:
            wanted = {**around, group.name: kept}
            for cuts, together in at.builder.build_batches([wanted], around):
                with together.evaluating():
                    first = together(one.x, data="x", batch=0)[0]
                    again = together(one.x, data="x", batch=0)[0]
                alone = fresh.cut(cuts[0])
                assert state_bytes(together.networks[0]) == state_bytes(alone)
                with torch.no_grad():
                    expected = alone(one.x)
                assert torch.equal(first, expected) and torch.equal(again, expected)
        if number % 3 != 2:  # the gate turned the others down
            around = wanted
    assert at.builder._prefixes.taken > 0


def counted(model: SpikingViT) -> list[str]:
    calls: list[str] = []
    for name, block in model.blocks.named_children():
        block.register_forward_hook(lambda *_, n=name: calls.append(n))
    return calls


def test_the_second_network_begins_where_the_first_differed(model, graph, digits) -> None:
    def fresh(memory: int) -> Prober:
        evaluate = DataEvaluator(splits=digits, batch_size=32, device=torch.device("cpu"))
        size = parameter_bytes(model)
        table = ProbeTable(Reference(context={}, measurement=evaluate(model), parameter_bytes=size))
        importance = find_importance("l2")
        return Prober(
            model=model,
            graph=graph,
            evaluate=evaluate,
            table=table,
            importance=importance,
            memory=memory,
        )

    names = [name for name, _ in model.blocks.named_children()]
    group = next(g for g in graph.prunable() if f".{names[-1]}." in g.name)
    at = fresh(10**9)
    each = parameter_bytes(model) + buffer_bytes(model)
    tight = fresh(5 * each)
    calls = counted(model)
    at.probe({group.name: 1}, around={})
    first = len(calls)
    calls.clear()
    at.probe({group.name: 2}, around={})
    assert first > len(names) and set(calls) == {names[-1]}
    tight.probe({group.name: 1}, around={})
    calls.clear()
    found = tight.probe({group.name: 2}, around={})
    assert set(calls) == set(names)
    assert found.accuracy == at.probe({group.name: 2}).accuracy


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_a_deep_copy(family: str) -> None:
    one = lively(family)
    last = one.model.blocks[-1]
    other = copy_of(one.model, shared=[last])
    assert state_bytes(other) == state_bytes(one.model)
    with torch.no_grad():
        assert torch.equal(other(one.x), one.model(one.x))
    before = state_bytes(one.model)
    mine = {id(module) for module in one.model.modules()}
    theirs = {id(module) for module in last.modules()}
    assert mine & {id(module) for module in other.modules()} == theirs
    shared = {id(t) for t in last.state_dict(keep_vars=True).values()}
    with torch.no_grad():
        for tensor in other.state_dict(keep_vars=True).values():
            if id(tensor) not in shared:
                tensor.add_(1)
    assert state_bytes(one.model) == before
    for name, value in vars(one.model.blocks[0]).items():
        held = vars(other.blocks[0])[name]
        assert held is not value or not isinstance(value, dict | list | set)

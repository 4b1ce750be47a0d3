"""Every criterion gives every group of every family finite scores, and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from primesvt.importance import CriterionContext, find_importance, needs_inputs
from primesvt.registry import CRITERIA

from ..channels.firing import state_bytes
from ..lively import FAMILIES, free, lively


@pytest.mark.parametrize("family", FAMILIES)
def test_every_criterion_on_every_group(family: str) -> None:
    one = lively(family)
    before = state_bytes(one.model)
    flags = [module.training for module in one.model.modules()]
    names = {name: set(vars(module)) for name, module in one.model.named_modules()}
    for name in CRITERIA.builtin:  # not those that examples registered
        importance = find_importance(name)
        for group in free(one.graph):
            scores = importance(one.evidence, group)
            assert scores.shape == (group.positions, group.size), (name, group.name)
            assert np.isfinite(scores).all(), (name, group.name)
            assert group.size == 1 or name == "taylor" or len(np.unique(scores)) > 1
    assert state_bytes(one.model) == before
    assert [module.training for module in one.model.modules()] == flags
    assert all(not module._forward_hooks for module in one.model.modules())
    assert all(p.grad is None for p in one.model.parameters())
    left = {n: set(vars(m)) - names[n] for n, m in one.model.named_modules()}
    assert {name: extra for name, extra in left.items() if extra} == {}


@pytest.mark.parametrize("name", [n for n in CRITERIA.builtin if needs_inputs(find_importance(n))])
def test_without_inputs_the_error_says_what_to_do(name: str) -> None:
    one = lively("sdt_v2")
    evidence = CriterionContext(model=one.model, graph=one.graph)
    with pytest.raises(ValueError, match="give calibration="):
        find_importance(name)(evidence, one.graph["blocks.block4_0.mlp.fc1"])

"""What removal costs, in the order in which channels go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from primesvt.calibration.least_squares import damped
from primesvt.importance import find_importance, keep, removal_costs
from primesvt.importance.obs import eliminate, obs
from primesvt.registry import CRITERIA

from ..lively import FAMILIES, free, lively, watched


@pytest.mark.parametrize("name", sorted(CRITERIA.builtin))
def test_they_rise_in_the_order_in_which_channels_go(name: str) -> None:
    one = lively("sdt_v2")
    group = next(g for g in free(one.graph) if g.positions > 1)
    costs = removal_costs(find_importance(name), one.evidence, group)
    assert costs.shape == (group.positions, group.size) and np.isfinite(costs).all()
    assert (np.diff(costs, axis=1) >= 0).all()


@pytest.mark.parametrize("name", ["l2", "activity"])
def test_a_count_keeps_what_costs_most(name: str) -> None:
    one = lively("spikformer")
    group = free(one.graph)[0]
    scores = find_importance(name)(one.evidence, group)
    costs = removal_costs(find_importance(name), one.evidence, group)
    kept = np.take_along_axis(scores, keep(scores, 3), axis=1)
    assert np.sort(kept, axis=1) == pytest.approx(costs[:, -3:])


def test_obs_pays_all_that_its_reader_gets() -> None:
    """The costs of the whole elimination add up to the damped output variance."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    one = watched(net, torch.randn(80, 4), batch=16)
    gone = eliminate(one.evidence, one.graph["0"])
    covariance = one.activity.moments("2").covariance
    weights = net[2].weight.detach().double()
    spread = float(torch.trace(weights @ covariance @ weights.T))
    whole = float(torch.trace(weights @ damped(covariance) @ weights.T))
    assert float(gone.cost.sum()) == pytest.approx(whole / spread)
    assert np.array_equal(gone.place, obs(one.evidence, one.graph["0"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_product_pays_the_whole_attention_map(family: str) -> None:
    """Shares of the squared norm of the removed part: nothing is left in the end."""
    one = lively(family)
    groups = [g for g in free(one.graph) if not one.activity.readers[g.name]]
    for group in groups:
        cost = eliminate(one.evidence, group).cost
        assert cost.sum() == pytest.approx(1.0) and (cost >= -1e-12).all()

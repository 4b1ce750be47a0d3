"""Policies to compare with, on made-up networks whose costs and savings are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primesvt.channels.widths import PERCENTS, WidthGrid
from primesvt.pruning.policies import AccuracyGate, global_ranking
from primesvt.pruning.policies.base import ProbedNetworks
from primesvt.pruning.policies.global_ranking import shares_left
from primesvt.pruning.policies.random_rates import DRAWS

from ...families.drawn import SEEDS, examples
from .worlds import SAMPLES, SIZE, World, world

NAMES = ("uniform", "global", "random", "psvit")
LIMIT = 0.02


def solve(name: str, one: World, allowed: float = LIMIT, *, seed: int = 0, **options):
    """The walk of a policy."""
    one.seed = seed
    if name == "global":  # its rates are shares of all channels
        one.grids = [dataclasses.replace(grid, rates=PERCENTS) for grid in one.grids]
    return one.solve(allowed, policy=name, **options)


class Jagged(World):
    """Accuracy only nearly falls with what is cut: some networks have luck, others none."""

    def cost(self, cuts):
        luck = crc32(repr(sorted(cuts.items())).encode()) % 1000 / 1000
        return super().cost(cuts) * (0.8 + 0.4 * luck)


def jagged(seed: int, groups: int) -> World:
    smooth = world(seed, groups)
    return Jagged(smooth.curves, smooth.weights, twist=0.002)


@pytest.mark.parametrize("name", NAMES)
@examples(40)
@given(seed=SEEDS, groups=st.integers(1, 5), gate=st.sampled_from(("point", "bound")))
def test_a_plan_is_one_that_was_measured_and_passed(name, seed, groups, gate):
    one = jagged(seed, groups)
    walk = solve(name, one, gate=gate)
    assert len({tuple(sorted(cuts.items())) for cuts in one.probed}) == len(one.probed)
    judged = AccuracyGate(kind=gate, allowed=LIMIT, reference=one.reference)
    assert walk.refused == sum(not judged.judge(World.probe(one, c)).passed for c in one.probed[:])
    if walk.probe is None:
        assert walk.choices == walk.alternatives == () and walk.accuracy_bound
        return
    assert walk.cuts in one.probed and walk.probe.cuts == walk.cuts and walk.verdict.passed
    assert (walk.verdict.drop if gate == "point" else walk.verdict.bound) <= LIMIT + 1e-9
    assert all(1 <= choice.kept < SIZE for choice in walk.choices)
    assert all(0 < choice.rate <= 0.9 + 1e-9 for choice in walk.choices)
    order = {g.group: n for n, g in enumerate(sorted(one.grids, key=lambda g: -g.parameters))}
    assert [c.group for c in walk.choices] == sorted(walk.cuts, key=order.__getitem__)


@pytest.mark.parametrize("name", NAMES)
@examples(25)
@given(seed=SEEDS)
def test_alternatives_are_milder_in_every_group(name, seed):
    one = jagged(seed, 4)
    walk = solve(name, one)
    plans = [{c.group: c.kept for c in each} for each in walk.alternatives]
    if not walk.choices:
        return
    assert plans[-1] == walk.cuts and all(plans)
    savings = [one.bytes_saved(plan) for plan in plans]
    assert savings == sorted(set(savings))
    for mild in plans:
        assert all(kept >= walk.cuts.get(group, SIZE) for group, kept in mild.items())


@pytest.mark.parametrize("name", NAMES)
@examples(30)
@given(seed=SEEDS, share=st.floats(0.05, 0.95))
def test_what_was_asked_for_and_no_rung_more(name, seed, share):
    one = world(seed)
    most = one.bytes_saved(solve(name, one).cuts)
    needed = int(share * most)
    again = world(seed)
    walk = solve(name, again, save=needed)
    saved = again.bytes_saved(walk.cuts)
    assert walk.stopped == (saved >= needed) and not (walk.stopped and walk.accuracy_bound)
    if walk.stopped:  # a rung takes at most one channel of each group
        assert saved < needed + sum(again.weights.values())
    assert walk.verdict is None or walk.verdict.passed


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_for(name):
    one = world(1)
    walk = solve(name, one, save=0)
    assert walk.choices == () and walk.stopped and not walk.accuracy_bound and not one.probed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_the_same_again(name, seed):
    first, second = jagged(seed, 4), jagged(seed, 4)
    assert solve(name, first, seed=seed) == solve(name, second, seed=seed)
    assert first.probed == second.probed


@pytest.mark.parametrize("name", NAMES)
def test_nothing_passes(name):
    steep = [0.0] + [900.0] * 9
    walk = solve(name, World({"a": steep, "b": steep}, {"a": 3, "b": 2}), 0.01)
    assert walk.choices == () and walk.probe is None and walk.accuracy_bound and walk.refused > 0


@pytest.mark.parametrize("name", NAMES)
def test_all_passes_and_no_limit_binds(name):
    flat = [0.0] * SIZE
    one = World({"a": flat, "b": flat}, {"a": 3, "b": 2})
    walk = solve(name, one, 0.01)
    assert walk.cuts == {"a": 1, "b": 1} and not walk.accuracy_bound and not walk.stopped


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_groups_too_narrow_for_any_rate_stay(name):
    one = world(1)
    one.grids.append(WidthGrid(group="narrow", positions=4, size=1, parameters=1, widths={}))
    assert "narrow" not in solve(name, one).cuts
    one.grids[:] = one.grids[-1:]
    assert solve(name, one).choices == ()


@pytest.mark.parametrize("name", NAMES)
def test_no_groups_at_all(name):
    assert solve(name, World({}, {}), 0.01).choices == ()


@examples(40)
@given(seed=SEEDS, groups=st.integers(1, 5))
def test_uniform_is_the_highest_rate_that_passes(seed, groups):
    """Where accuracy falls with the rate, against all of them."""
    one = world(seed, groups)
    passing = [k for k in range(1, 10) if one.cost(dict.fromkeys(one.weights, 10 - k)) < 200.5]
    expected = dict.fromkeys(one.weights, 10 - max(passing)) if passing else {}
    assert solve("uniform", one).cuts == expected


def test_global_by_hand(monkeypatch):
    """Costs 1, 2, 2 are worth 1/9, 1/2, 1, whatever their scale; a is larger, b has two heads."""
    costs = {"a": np.array([[3.0, 6.0, 6.0]]), "b": np.array([[1.0, 1.0], [0.5, 1.0]])}
    assert shares_left(costs["a"]) == pytest.approx(np.array([[1 / 9, 1 / 2, 1]]))
    assert shares_left(costs["b"]) == pytest.approx(np.array([[1 / 2, 1], [1 / 5, 1]]))
    grids = [
        WidthGrid(group="a", positions=1, size=3, parameters=9, widths={2: 1 / 3, 1: 2 / 3}),
        WidthGrid(group="b", positions=2, size=2, parameters=4, widths={1: 0.5}),
    ]

    class Free(World):
        def bytes_saved(self, cuts):
            return 6 * (3 - cuts.get("a", 3)) + 4 * (2 - cuts.get("b", 2))

        def cost(self, cuts):
            return 0.0

    # In this order, with so many channels of seven gone: a (1), b (3), a (4).
    one = Free({"a": [0.0], "b": [0.0]}, {"a": 3, "b": 2})
    one.removal_costs = lambda _: costs
    monkeypatch.setattr(global_ranking, "every_width", lambda grid: grid)  # they have all
    plans = {}
    for share in (0.14, 0.15, 0.43, 0.57, 0.58, 0.99):
        one.grids = [dataclasses.replace(grid, rates=(share,)) for grid in grids]
        plans[share] = one.solve(0.1, policy="global").cuts
    assert plans == {
        0.14: {},
        0.15: {"a": 2},
        0.43: {"a": 2, "b": 1},
        0.57: {"a": 2, "b": 1},
        0.58: {"a": 1, "b": 1},
        0.99: {"a": 1, "b": 1},
    }


@examples(30)
@given(seed=SEEDS, scale=st.floats(1e-6, 1e6))
def test_global_is_blind_to_the_scale_of_a_group(seed, scale):
    one = world(seed)
    costs = {n: np.cumsum(np.abs(curve))[None] for n, curve in one.curves.items()}
    one.removal_costs = lambda _: costs
    first = solve("global", one)
    one.removal_costs = lambda _: costs | {"g0": scale * costs["g0"]}
    assert first.cuts == solve("global", one).cuts


def test_channels_of_no_cost_go_first():
    assert shares_left(np.array([[0.0, 0.0, 3.0, 4.0]])).tolist() == [[0, 0, 9 / 25, 1]]
    assert shares_left(np.zeros((1, 2))).tolist() == [[0, 0]]


def test_random_draws_differ_with_the_seed_and_are_several():
    one = world(3)
    walks = [solve("random", one, seed=seed).cuts for seed in range(4)]
    assert len({tuple(sorted(cuts.items())) for cuts in walks}) > 1
    again = world(3)
    solve("random", again, save=again.bytes_saved(walks[0]) // 2)
    assert len(again.probed) == DRAWS  # all of them, where just so much is needed


def test_random_takes_the_draw_of_the_least_drop():
    one = world(3)
    needed = one.bytes_saved(solve("random", one).cuts) // 2
    again = world(3)
    walk = solve("random", again, save=needed)
    drops = [again.cost(cuts) for cuts in again.probed if again.bytes_saved(cuts) >= needed]
    assert round(min(drops)) == walk.probe.lost and walk.stopped


def test_psvit_by_hand():
    """Large are a and b: alike they may lose 3 channels each. All by tolerance saves more."""
    curves = {
        "a": [0.0, 10, 20, 60, 90, 190, 300, 400, 500, 600],
        "b": [0.0, 10, 20, 30, 40, 50, 60, 70, 80, 300],
        "c": [0.0] * 9 + [1.0],
    }
    one = World(curves, {"a": 30, "b": 20, "c": 1})
    asked, measured = [], one.probes

    def probes(wanted, **options):
        asked.append(list(one.probed))
        return measured(wanted, **options)

    one.probes = probes
    walk = solve("psvit", one, 0.01)
    assert len(asked) == 1 and all("c" not in cuts for cuts in asked[0])
    assert {"a": 7, "b": 7} in asked[0]  # 90 lost, the most that passes in step 1
    # Tolerated alone are 0.4, 0.8 and 0.9 (100 lost are allowed); 0.6 of that are 0.24 and 0.48.
    assert walk.cuts == {"a": 8, "b": 5, "c": 5}
    assert walk.probe.lost == 70 and walk.accuracy_bound
    assert one.bytes_saved(walk.cuts) > one.bytes_saved({"a": 7, "b": 7})


def test_psvit_keeps_the_uniform_plan_where_that_saves_more():
    """A small layer that cannot stand what its own tolerance says spoils the fine-grained plans."""

    class Together(World):
        def cost(self, cuts):
            return 5000.0 if {"a", "c"} <= set(cuts) else super().cost(cuts)

    flat = [0.0] * SIZE
    one = Together({"a": flat, "c": flat}, {"a": 30, "c": 1})
    walk = solve("psvit", one)
    assert walk.cuts == {"a": 1}


def test_a_layer_that_tolerates_nothing_stays_in_psvit():
    steep, flat = [0.0] + [5000.0] * 9, [0.0] * SIZE
    walk = solve("psvit", World({"a": flat, "b": steep}, {"a": 30, "b": 1}))
    assert walk.cuts == {"a": 1} and walk.accuracy_bound and walk.refused == 0


def test_progress_is_told():
    one = world(2)
    solve("uniform", one)
    assert one.told == [("whole networks", n, 0) for n in range(1, len(one.probed) + 1)]


def test_limits_of_a_world_are_in_whole_samples():
    assert LIMIT * SAMPLES == 200


@pytest.mark.parametrize(("limit", "best"), [(1e3, 110), (68, 67.5), (4, 3.75), (-1, None)])
def test_the_largest_saving_that_passes_is_come_near_to(limit: float, best: float | None) -> None:
    """Twelve savings, 10 apart; halved three times above the first that passes."""
    asked: list[float] = []

    def look(saving: float) -> Any:
        asked.append(saving)
        return SimpleNamespace(saved=saving) if saving <= limit else None

    found = ProbedNetworks.highest(look, low=0.0, high=110.0)
    assert (None if found is None else found.saved) == best
    assert len(asked) == len(set(asked)) and asked[0] == 110

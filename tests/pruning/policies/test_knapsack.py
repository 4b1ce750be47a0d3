"""The dynamic programme against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primesvt.pruning.policies.knapsack import Knapsack, Option

GROUPS = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), max_size=3), min_size=1, max_size=4
)


def options(drawn: list[list[tuple[int, int]]]) -> list[list[Option]]:
    """Every group may stay as it is, too."""
    return [
        [Option(kept=9, cost=0, saved=0)]
        + [Option(kept=8 - i, cost=c, saved=s) for i, (c, s) in enumerate(group)]
        for group in drawn
    ]


def best(groups: list[list[Option]], saving: float) -> float | None:
    plans = itertools.product(*groups)
    enough = [sum(o.cost for o in p) for p in plans if sum(o.saved for o in p) >= saving]
    return min(enough, default=None)


def taken(groups: list[list[Option]], kept: list[int]) -> tuple[float, float]:
    chosen = [next(o for o in g if o.kept == k) for g, k in zip(groups, kept, strict=True)]
    return sum(o.cost for o in chosen), sum(o.saved for o in chosen)


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.floats(0, 1.2))
def test_exact_on_a_grid_of_whole_savings(drawn: list[list[tuple[int, int]]], share: float) -> None:
    groups = options(drawn)
    most = int(sum(max(o.saved for o in group) for group in groups))
    found = Knapsack(groups, bins=max(1, most))
    asked = round(share * most)
    cost, saved = taken(groups, found.solve(asked))
    assert found.most == most
    assert saved >= min(asked, most)  # as near to it as can be had
    assert cost == best(groups, min(asked, most))


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.floats(0, 1), st.integers(20, 300))
def test_a_coarse_grid_keeps_its_promise_and_is_nearly_as_cheap(
    drawn: list[list[tuple[int, int]]], share: float, bins: int
) -> None:
    groups = options(drawn)
    found = Knapsack(groups, bins=bins)
    reachable = (
        sum(max(int(o.saved / found.unit + 1e-9) for o in group) for group in groups) * found.unit
    )
    asked = share * reachable
    cost, saved = taken(groups, found.solve(asked))
    assert saved >= asked - 1e-6
    more = best(groups, asked + (len(groups) + 1) * found.unit)
    assert more is None or cost <= more + 1e-9


def test_of_equal_costs_the_wider_one() -> None:
    group = [Option(kept=3, cost=0, saved=5), Option(kept=4, cost=0, saved=0)]
    assert Knapsack([group]).solve(0) == [4]
    assert Knapsack([group]).solve(1) == [3]


def test_nothing_to_save() -> None:
    assert Knapsack([[Option(kept=4, cost=0, saved=0)]]).solve(10) == [4]


@pytest.mark.parametrize("asked", [1e9, 101])
def test_more_than_there_is_gives_all_there_is(asked: float) -> None:
    group = [Option(kept=4, cost=0, saved=0), Option(kept=1, cost=7, saved=100)]
    assert Knapsack([group]).solve(asked) == [1]


NEEDY = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40), st.integers(0, 90)), max_size=3),
    min_size=1,
    max_size=4,
)


def needy(drawn: list[list[tuple[int, int, int]]]) -> list[list[Option]]:
    return [
        [Option(kept=9, cost=0, saved=0, others=(0,))]
        + [Option(kept=8 - i, cost=c, saved=s, others=(o,)) for i, (c, s, o) in enumerate(group)]
        for group in drawn
    ]


@settings(max_examples=80, deadline=None)
@given(NEEDY, st.floats(0, 1))
def test_exact_with_a_need_on_whole_numbers(
    drawn: list[list[tuple[int, int, int]]], share: float
) -> None:
    groups, need = needy(drawn), 120  # as many as the programme has points for one need
    plans = [(sum(o.cost for o in p), sum(o.saved for o in p), sum(o.others[0] for o in p))
             for p in itertools.product(*groups)]  # fmt: skip
    most = int(sum(max(o.saved for o in group) for group in groups))
    found = Knapsack(groups, bins=max(1, most), needs=[need])
    chosen = [next(o for o in g if o.kept == k)
              for g, k in zip(groups, found.solve(share * most), strict=True)]  # fmt: skip
    other = sum(o.others[0] for o in chosen)
    meeting = [plan for plan in plans if plan[2] >= need]
    if not meeting:  # all that can be had of the need, in whole points
        assert other == max(plan[2] for plan in plans)
        return
    reachable = max(plan[1] for plan in meeting)
    asked = min(int(np.ceil(share * most - 1e-9)), reachable)
    assert other >= need and sum(o.saved for o in chosen) >= asked
    assert sum(o.cost for o in chosen) == min(p[0] for p in meeting if p[1] >= asked)


def test_two_needs_of_different_groups() -> None:
    quick = [Option(kept=4, cost=0, saved=0, others=(0, 0)),
             Option(kept=2, cost=3, saved=1, others=(9, 0))]  # fmt: skip
    small = [Option(kept=4, cost=0, saved=0, others=(0, 0)),
             Option(kept=2, cost=4, saved=1, others=(0, 5))]  # fmt: skip
    free = [Option(kept=4, cost=0, saved=0, others=(0, 0)),
            Option(kept=2, cost=0, saved=8, others=(0, 0))]  # fmt: skip
    groups = [quick, small, free]
    assert Knapsack(groups, needs=[0, -3]).solve(8) == [4, 4, 2]
    assert Knapsack(groups, needs=[5, 0]).solve(8) == [2, 4, 2]
    assert Knapsack(groups, needs=[0, 5]).solve(8) == [4, 2, 2]
    assert Knapsack(groups, needs=[9, 5]).solve(0) == [2, 2, 4]


def test_many_small_savings_are_not_lost_to_rounding() -> None:
    """Each is a third of a grid point; rounded down, nothing would be saved."""
    groups = [
        [Option(kept=2, cost=0, saved=0, others=(0.0,)),
         Option(kept=1, cost=1, saved=1, others=(0.9,))]
        for _ in range(200)
    ]  # fmt: skip
    kept = Knapsack(groups, needs=[100.0]).solve(0)
    assert 100 <= kept.count(1) <= 130

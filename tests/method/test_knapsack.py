"""The dynamic programme against trying everything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primesvt.policies.knapsack import Knapsack, Option

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

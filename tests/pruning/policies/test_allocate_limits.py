"""Allocation under a limit beside memory, on made-up networks that can be tried out in full."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from primesvt.profiling.limits import LimitOutcome

from .worlds import SAMPLES, SIZE, World, world


class Clock:
    """A limit on time: every group has its own milliseconds a channel.

    ``estimate`` is what the table says of the true saving, as groups that share a layer do.
    """

    name = "latency"

    def __init__(self, world, weights, needed, *, estimate=1.0):
        self.world, self.weights, self.needed, self.estimate = world, weights, needed, estimate
        self.timed = []

    def at(self, cuts):
        whole = sum(SIZE * weight for weight in self.weights.values())
        return LimitOutcome(name="latency", before=whole, after=whole - self.true(cuts),
                    allowed=whole - self.needed, batch=32)  # fmt: skip

    def true(self, cuts):
        return sum((SIZE - kept) * self.weights[name] for name, kept in cuts.items())

    def saved(self, cuts):
        return self.estimate * self.true(cuts)

    def proved(self, cuts):
        known = dict(cuts) in self.world.probed or not self.world.probed
        assert known, "of networks that were not looked at, only the narrowest is timed"
        self.timed.append(dict(cuts))
        return self.true(cuts)


def clocked(seed, share, **options):
    """A world and a clock that asks for a share of the most that passing plans save of time.

    What has much memory takes little time, as late and early layers do.
    """
    one = world(seed)
    weights = {name: 61.0 - weight for name, weight in one.weights.items()}
    clock = Clock(one, weights, 0.0, **options)
    plans = list(passing(one, 0.02))
    clock.needed = share * max(clock.true(plan) for plan in plans)
    return one, clock, plans


def passing(one: World, allowed: float):
    """Every plan that passes."""
    for row in itertools.product(range(SIZE), repeat=len(one.weights)):
        plan = {n: SIZE - r for n, r in zip(one.weights, row, strict=True) if r}
        if round(one.cost(plan)) <= allowed * SAMPLES + 1e-6:
            yield plan


@pytest.mark.parametrize(("share", "estimate"), [(0.5, 1.0), (0.8, 1.0), (0.8, 1.3), (0.8, 0.8)])
def test_a_limit_beside_memory_holds(share: float, estimate: float) -> None:
    """Against every plan there is: those that hold it, and of them the most memory saved."""
    held, shares = [], []
    for seed in range(10):
        one, clock, plans = clocked(seed, share, estimate=estimate)
        walk = one.solve(0.02, limits=[clock])
        held.append(bool(walk.cuts) and clock.true(walk.cuts) >= clock.needed - 1e-9)
        most = max(one.bytes_saved(plan) for plan in plans if clock.true(plan) >= clock.needed)
        if held[-1] and most:
            shares.append(one.bytes_saved(walk.cuts) / most)
            assert walk.verdict.passed and walk.cuts in one.probed
    assert np.mean(held) >= 0.9
    assert np.mean(shares) > 0.9


def test_memory_alone_would_not_hold_it() -> None:
    """The same worlds without the limit: so the tests above show something."""
    held = []
    for seed in range(10):
        one, clock, _ = clocked(seed, 0.8)
        held.append(clock.true(one.solve(0.02).cuts) >= clock.needed)
    assert np.mean(held) <= 0.5


def test_a_limit_out_of_reach_is_come_near_to() -> None:
    shares = []
    for seed in range(6):
        one, clock, plans = clocked(seed, 1.0)
        clock.needed = (clock.needed + clock.true(dict.fromkeys(one.weights, 1))) / 2
        walk = one.solve(0.02, limits=[clock])
        assert not walk.stopped and clock.true(walk.cuts) < clock.needed
        shares.append(clock.true(walk.cuts) / max(clock.true(plan) for plan in plans))
    assert np.mean(shares) > 0.85


def test_it_stops_only_when_all_limits_hold() -> None:
    stopped = []
    for seed in range(6):
        one, clock, _ = clocked(seed, 0.7)
        needed = int(0.4 * one.most(0.02))
        walk = one.solve(0.02, save=needed, limits=[clock])
        stopped.append(walk.stopped)
        enough = one.bytes_saved(walk.cuts) >= needed and clock.true(walk.cuts) >= clock.needed
        assert walk.stopped == enough
    assert np.mean(stopped) > 0.8


def test_only_networks_that_pass_are_timed() -> None:
    one, clock, _ = clocked(3, 0.8)
    one.solve(0.02, limits=[clock])
    narrowest, *others = clock.timed
    assert set(narrowest.values()) == {1} and others
    assert all(round(one.cost(cuts)) <= 200 for cuts in others)


def test_a_limit_that_no_width_can_hold_is_told_before_anything_is_measured() -> None:
    one, clock, _ = clocked(3, 0.8)
    clock.needed = 1.05 * clock.true(dict.fromkeys(one.weights, 1))
    with pytest.raises(ValueError, match=r"max_latency cannot hold.* ms allowed.*include_streams"):
        one.solve(0.02, limits=[clock])
    assert not one.probed and not one.measured


def test_limits_that_need_nothing_change_nothing() -> None:
    one, other = world(4), world(4)
    idle = Clock(other, dict.fromkeys(other.weights, 1.0), -5.0)
    assert one.solve(0.02).cuts == other.solve(0.02, limits=[idle]).cuts

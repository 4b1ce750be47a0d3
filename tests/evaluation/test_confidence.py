"""Intervals against brute force: exact binomial sums, and the likelihood itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primesvt.evaluation.confidence import mean_drop_bound, paired_drop_bound, wilson_interval

Z = 1.6448536269514722


def _binomial(n, p):
    log = np.array(
        [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    )
    k = np.arange(n + 1)
    return np.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.9, 0.97])
def test_wilson_covers_its_level_on_average(rate):
    weights = _binomial(200, rate)
    inside = [low <= rate <= high for low, high in (wilson_interval(k, 200) for k in range(201))]
    assert 0.92 < weights[np.array(inside)].sum() < 0.98


def test_wilson_at_the_ends():
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0
    assert wilson_interval(0, 50)[1] == pytest.approx(1 - wilson_interval(50, 50)[0])


def _coverage(pairs, lost_rate, gained_rate):
    """Exact probability that the bound lies above the true drop."""
    log_fact = [math.lgamma(k + 1) for k in range(pairs + 1)]
    same = 1 - lost_rate - gained_rate
    total = 0.0
    for lost in range(pairs + 1):
        for gained in range(pairs + 1 - lost):
            rest = pairs - lost - gained
            log = log_fact[pairs] - log_fact[lost] - log_fact[gained] - log_fact[rest]
            parts = ((lost, lost_rate), (gained, gained_rate), (rest, same))
            log += sum(count * math.log(rate) for count, rate in parts if count)
            if log < -18:
                continue
            if paired_drop_bound(lost, gained, pairs) >= lost_rate - gained_rate:
                total += math.exp(log)
    return total


@pytest.mark.parametrize(
    ("pairs", "lost", "gained"),
    [(40, 0.1, 0.1), (40, 0.3, 0.1), (60, 0.05, 0.02), (60, 0.02, 0.02), (100, 0.03, 0.01)],
)
def test_bound_of_the_drop_covers(pairs, lost, gained):
    assert _coverage(pairs, lost, gained) > 0.93


@given(st.integers(10, 400), st.data())
def test_bound_inverts_the_score_test(pairs, data):
    """At the bound, the score statistic with the likelihood's own maximum is minus z."""
    lost = data.draw(st.integers(0, pairs // 2))
    gained = data.draw(st.integers(0, pairs // 2))
    bound = paired_drop_bound(lost, gained, pairs)
    assert (lost - gained) / pairs < bound <= 1
    gained_rate = _most_likely(lost, gained, pairs, bound)
    variance = pairs * (2 * gained_rate + bound * (1 - bound))
    statistic = (lost - gained - pairs * bound) / math.sqrt(variance)
    assert statistic == pytest.approx(-Z, abs=1e-3)


def _most_likely(lost, gained, pairs, drop):
    """Rate of gained samples of the largest likelihood for a given drop, by ternary search."""

    def likelihood(rate):
        parts = ((gained, rate), (lost, rate + drop), (pairs - lost - gained, 1 - 2 * rate - drop))
        return sum(count * math.log(max(share, 1e-300)) for count, share in parts if count)

    low, high = max(0.0, -drop), (1 - drop) / 2
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if likelihood(left) < likelihood(right):
            low = left
        else:
            high = right
    return (low + high) / 2


@pytest.mark.parametrize("pairs", [1, 10, 450, 50_000])
def test_no_discordant_pair_proves_no_more_than_the_size_allows(pairs):
    bound = paired_drop_bound(0, 0, pairs)
    assert bound == pytest.approx(Z**2 / (pairs + Z**2), abs=1e-9)


def test_bound_grows_with_losses_and_shrinks_with_images():
    assert paired_drop_bound(3, 0, 100) < paired_drop_bound(5, 0, 100)
    assert paired_drop_bound(3, 0, 100) > paired_drop_bound(30, 0, 1000)
    assert paired_drop_bound(3, 0, 100, level=0.9) < paired_drop_bound(3, 0, 100, level=0.99)
    assert paired_drop_bound(100, 0, 100) == pytest.approx(1)
    assert paired_drop_bound(0, 100, 100) < -0.9


def test_bound_of_a_mean_difference_covers():
    draws = np.random.default_rng(0).exponential(size=(4000, 200))
    bounds = [mean_drop_bound(d.mean(), d.std(ddof=1), 200) for d in draws]
    assert 0.92 < np.mean(np.array(bounds) >= 1) < 0.97
    assert mean_drop_bound(0.1, 0.0, 1) == math.inf


@pytest.mark.parametrize("counts", [(5, 4), (-1, 4), (0, 0)])
def test_impossible_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        wilson_interval(*counts)
    with pytest.raises(ValueError, match="counts"):
        paired_drop_bound(counts[0], 0, counts[1])


@pytest.mark.parametrize("level", [0.3, 1.0])
def test_impossible_levels(level):
    with pytest.raises(ValueError, match="level"):
        paired_drop_bound(1, 1, 10, level=level)

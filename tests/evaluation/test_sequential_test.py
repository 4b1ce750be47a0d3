"""The early test of a pruned network: seldom wrong, and quick where it matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primesvt.evaluation.confidence import paired_drop_bound
from primesvt.evaluation.evaluator import Measurement
from primesvt.evaluation.sequential_test import GATES, SequentialTest
from primesvt.pruning.gate import GATES as KNOWN
from primesvt.pruning.gate import AccuracyGate
from primesvt.pruning.probe_table import Probe, Reference

DIFFERENCES = st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=120)


def _population(total, lost, gained):
    found = np.zeros(total, dtype=np.int64)
    found[:lost] = 1
    found[lost : lost + gained] = -1
    return found


def _verdict(race, differences):
    """What the gate says of all images."""
    lost, gained = int((differences > 0).sum()), int((differences < 0).sum())
    reference = Reference(
        context={},
        measurement=Measurement(value=1.0, outcomes=np.ones(race.total, dtype=np.bool_)),
        parameter_bytes=1,
    )
    gate = AccuracyGate(kind=race.gate, allowed=race.limit, reference=reference, level=race.level)
    probe = Probe(
        kind="walk",
        cuts={},
        accuracy=0.0,
        saving=0.0,
        parameter_bytes=1,
        samples=race.total,
        lost=lost,
        gained=gained,
    )
    return gate.judge(probe).passed


def _run(race, differences, batch=64):
    runner = race.start()
    for begin in range(0, len(differences), batch):
        if runner.add(differences[begin : begin + batch]):
            break
    return runner


def test_the_gates_are_those_of_the_policies():
    assert set(GATES) == set(KNOWN)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("total", [20, 450, 2500])
def test_the_bound_grows_with_gained_at_a_fixed_drop(total, level):
    """Why the images gained so far may narrow what is allowed, and none is the widest."""
    for net in (-total // 10, -3, 0, 1, total // 50, total // 4):
        gained = range(max(0, -net), max(0, -net) + min(100, (total - abs(net)) // 2))
        bounds = [paired_drop_bound(net + g, g, total, level=level) for g in gained]
        assert (np.diff(bounds) > -1e-9).all()


@pytest.mark.parametrize("gained", [0, 1, 7])
@pytest.mark.parametrize(("limit", "total"), [(0.0, 450), (0.01, 40), (0.01, 450), (0.03, 2500)])
def test_the_budget_is_the_last_sum_that_passes(limit, total, gained):
    race = SequentialTest(limit=limit, total=total)
    budget = int(race.budget(gained))
    fewest = max(gained, -budget)
    assert paired_drop_bound(budget + fewest, fewest, total) <= limit + 1e-9
    fewest = max(gained, -budget - 1)
    assert paired_drop_bound(budget + 1 + fewest, fewest, total) > limit


def test_the_budget_of_the_other_gates():
    assert SequentialTest(limit=0.01, total=450, gate="point").budget() == 4
    assert SequentialTest(limit=0.02, total=450, gate="point").budget() == 9
    assert SequentialTest(limit=0.02, total=450, graded=True).budget() == pytest.approx(9)


@given(
    found=DIFFERENCES,
    limit=st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]),
    gate=st.sampled_from(GATES),
    graded=st.booleans(),
)
def test_the_capital_stays_positive(found, limit, gate, graded):
    runner = SequentialTest(limit=limit, total=len(found), gate=gate, graded=graded).start()
    for difference in found:
        out = runner.add(np.array([difference]))
        assert out == runner.rejected
        assert runner.capital > 0
        assert np.isfinite(runner.capital)
    assert runner.images == len(found)
    assert runner.mean == pytest.approx(np.mean(found))


@given(found=DIFFERENCES, limit=st.sampled_from([0.01, 0.05, 0.2]), gate=st.sampled_from(GATES))
def test_who_has_seen_all_images_is_rejected_by_the_gate_too(found, limit, gate):
    """No bet reaches the capital at this error, so that only certainty rejects."""
    race = SequentialTest(limit=limit, total=len(found), gate=gate, error=1e-60)
    differences = np.array(found)
    assert _run(race, differences).rejected == (not _verdict(race, differences))


@given(found=DIFFERENCES, size=st.integers(1, 50), limit=st.sampled_from([0.01, 0.05]))
def test_calls_and_number_types_do_not_matter(found, size, limit):
    race = SequentialTest(limit=limit, total=150)
    whole, cut = race.start(), race.start()
    whole.add(np.array(found))
    for begin in range(0, len(found), size):
        cut.add(np.array(found[begin : begin + size], dtype=np.float32))
    assert whole.rejected == cut.rejected
    assert whole.mean == cut.mean
    assert whole.capital == pytest.approx(cut.capital)


@given(total=st.integers(300, 3000), gate=st.sampled_from(GATES), graded=st.booleans())
def test_a_network_with_equal_outcomes_is_never_rejected(total, gate, graded):
    runner = _run(
        SequentialTest(limit=0.01, total=total, gate=gate, graded=graded), np.zeros(total)
    )
    assert not runner.rejected
    assert runner.capital <= 1


@given(limit=st.floats(0.0, 0.9), total=st.integers(1, 600))
def test_a_graded_drop_of_just_the_limit_passes_and_more_does_not(limit, total):
    race = SequentialTest(limit=limit, total=total, graded=True)
    assert not _run(race, np.full(total, limit)).rejected
    assert _run(race, np.full(total, limit + 0.001)).rejected


def test_rejected_for_certain_as_soon_as_no_image_can_help():
    race = SequentialTest(limit=0.0, total=10, gate="point", error=1e-60)
    runner = race.start()
    assert not runner.add(np.ones(5, dtype=np.int64))
    assert runner.add(np.array([1]))
    assert runner.add(np.array([-1, -1, -1, -1]))
    assert runner.images == 10


def test_nothing_can_pass_on_so_few_images():
    runner = SequentialTest(limit=0.01, total=1, gate="bound", level=0.999).start()
    assert runner.rejected == (paired_drop_bound(0, 1, 1, level=0.999) > 0.01)
    assert not SequentialTest(limit=0.01, total=1, gate="point").start().add(np.array([0]))


def test_no_images_change_nothing():
    runner = SequentialTest(limit=0.01, total=100).start()
    assert not runner.add(np.array([], dtype=np.int64))
    assert (runner.images, runner.mean) == (0, 0.0)
    assert runner.capital == pytest.approx(1.0)


@pytest.mark.parametrize("disagreement", [0, 10])
@pytest.mark.parametrize(("gate", "limit"), [("point", 0.02), ("bound", 0.02), ("bound", 0.05)])
def test_a_network_at_the_boundary_is_seldom_rejected(gate, limit, disagreement):
    """At most 5 % of 2000 orders, and one draw in a thousand allowed on top."""
    race = SequentialTest(limit=limit, total=450, gate=gate)
    lost = int(race.budget(disagreement)) + disagreement
    found = _population(450, lost, disagreement)
    assert _verdict(race, found)
    assert not _verdict(race, _population(450, lost + 1, disagreement))
    generator = np.random.default_rng(0)
    wrong = sum(_run(race, generator.permutation(found)).rejected for _ in range(2000))
    assert wrong / 2000 < 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 2000)


def test_graded_outcomes_at_the_boundary():
    generator = np.random.default_rng(1)
    found = generator.uniform(-0.3, 0.5, 450)
    found += 0.1 - found.mean()
    race = SequentialTest(limit=0.1, total=450, graded=True)
    wrong = sum(_run(race, generator.permutation(found)).rejected for _ in range(1000))
    assert 0 < wrong / 1000 < 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("total", "limit"), [(2500, 0.01), (2500, 0.03), (5000, 0.01)])
def test_four_times_the_limit_is_rejected_early(total, limit, gate):
    race = SequentialTest(limit=limit, total=total, gate=gate)
    drop = round(4 * limit * total)
    found = _population(total, drop + drop // 2, drop // 2)
    generator = np.random.default_rng(0)
    runners = [_run(race, generator.permutation(found)) for _ in range(100)]
    assert all(runner.rejected for runner in runners)
    assert np.mean([runner.images for runner in runners]) < 0.25 * total


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("limit", 3.0, "limit is 3.0, but must be from 0 to 1"),
        ("limit", math.nan, "limit is nan"),
        ("total", 0, "total is 0, but must be at least 1"),
        ("gate", "both", "unknown gate 'both'; known: point, bound"),
        ("level", 1.0, "level is 1.0, but must be at least 0.5 and below 1"),
        ("error", 0.0, "error is 0.0, but must be above 0 and at most 0.5"),
        ("error", 0.6, "error is 0.6"),
    ],
)
def test_settings_that_cannot_be(field, value, message):
    with pytest.raises(ValueError, match=message):
        SequentialTest(**{"limit": 0.01, "total": 10, field: value})


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        (np.zeros(11), "11 images were added, but the race has 10"),
        (np.zeros((2, 2)), r"shape \[2, 2\]"),
        (np.array([True]), "type bool"),
        (np.array([255], dtype=np.uint8), "signed numbers"),
        (np.array([0.5]), "a difference is 0.5, but must be -1, 0 or 1; .* graded=True"),
        (np.array([math.nan]), "a difference is nan"),
    ],
)
def test_differences_that_cannot_be(differences, message):
    with pytest.raises(ValueError, match=message):
        SequentialTest(limit=0.01, total=10).start().add(differences)


def test_graded_differences_that_cannot_be():
    with pytest.raises(ValueError, match=r"2\.0, but must be from -1 to 1"):
        SequentialTest(limit=0.01, total=10, graded=True).start().add([2.0])

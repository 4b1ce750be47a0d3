"""The walk on made-up layers, whose right answer can be worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primesvt.evaluation.evaluator import Measurement
from primesvt.pruning.policies import AccuracyGate, find_policy
from primesvt.pruning.probe_table import Layer, Point, Probe, Reference

TOTAL = 1000


def world(costs, savings, *, samples=1000):
    """Layers whose drops and savings simply add up; ``costs[layer][rate]`` in lost samples."""
    right = np.ones(samples, dtype=bool)
    reference = Reference(
        context={},
        measurement=Measurement(value=1.0, outcomes=right),
        parameter_bytes=TOTAL,
    )
    measured = []

    def measure(cuts, around=None):
        lost = sum(costs[name][10 - kept] for name, kept in cuts.items())
        saved = sum(savings[name] * (10 - kept) for name, kept in cuts.items())
        measured.append(dict(cuts))
        return Probe(
            kind="layer" if len(cuts) == 1 else "walk",
            cuts=dict(cuts),
            accuracy=1 - lost / samples,
            saving=saved / TOTAL,
            parameter_bytes=TOTAL - saved,
            samples=samples,
            lost=lost,
            gained=0,
        )

    layers = [
        Layer(
            group=name,
            positions=1,
            size=10,
            parameters=10 * savings[name],
            points=tuple(
                Point(rate=k / 10, kept=10 - k, probe=measure({name: 10 - k}))
                for k in sorted(costs[name])
            ),
        )
        for name in costs
    ]
    measured.clear()
    return reference, layers, measure, measured


def policy(reference, allowed, **options):
    kind, target = options.pop("gate", "point"), options.pop("target_bytes", None)
    gate = AccuracyGate(kind=kind, allowed=allowed, reference=reference)
    return find_policy("prime").from_config(options, gate, target)


COSTS = {
    "small": {1: 0, 5: 1, 9: 2},
    "large": {1: 2, 5: 10, 9: 40},
    "middle": {1: 5, 5: 18, 9: 100},
    "brittle": {1: 200, 5: 300, 9: 400},
}
SAVINGS = {"small": 5, "large": 40, "middle": 20, "brittle": 30}


def test_reading_a_by_hand():
    """30 lost samples allowed: large at 50 % (10), middle at 50 % (28), small at 90 % (30)."""
    reference, layers, measure, measured = world(COSTS, SAVINGS)
    walk = policy(reference, 0.03).prune_layers(layers, measure)
    assert walk.cuts == {"large": 5, "middle": 5, "small": 1}
    assert list(walk.cuts) == ["large", "middle", "small"]
    assert [t.layer.group for t in walk.targets] == ["large", "brittle", "middle", "small"]
    assert [t.chosen for t in walk.targets] == [True, False, True, True]
    assert "no probed rate" in walk.targets[1].reason
    assert measured == [
        {"large": 5},
        {"large": 5, "middle": 5},
        {"large": 5, "middle": 5, "small": 1},
    ]
    assert walk.accuracy_bound
    assert walk.choices[-1].verdict.drop == pytest.approx(0.03)


def test_reading_a_goes_down_to_the_first_that_passes():
    reference, layers, measure, measured = world(COSTS, SAVINGS)
    walk = policy(reference, 0.027).prune_layers(layers, measure)
    assert walk.cuts == {"large": 5, "middle": 9, "small": 1}
    assert walk.refused == 1
    assert {"large": 5, "middle": 5} in measured


def test_reading_b_takes_the_best_benefit_or_nothing():
    reference, layers, measure, _ = world(COSTS, SAVINGS)
    walk = policy(reference, 0.027, reading="B").prune_layers(layers, measure)
    assert walk.cuts == {"large": 5, "small": 1}
    assert walk.refused == 1


def test_benefit_is_accuracy_times_saving():
    reference, layers, _, _ = world(COSTS, SAVINGS)
    targets = {t.layer.group: t for t in policy(reference, 0.03).targets(layers)}
    assert targets["large"].benefit == pytest.approx(0.99 * 0.2)
    assert targets["small"].benefit == pytest.approx(0.998 * 0.045)
    assert targets["brittle"].best is None


def test_threshold_deselects_small_benefits():
    reference, layers, measure, _ = world(COSTS, SAVINGS)
    walk = policy(reference, 0.03, target_threshold=0.4).prune_layers(layers, measure)
    assert list(walk.cuts) == ["large", "middle"]
    small = walk.targets[-1]
    assert "below 0.4 x the largest" in small.reason


def test_stops_once_the_saving_is_met():
    reference, layers, measure, _ = world(COSTS, SAVINGS)
    walk = policy(reference, 0.03, target_bytes=200).prune_layers(layers, measure)
    assert walk.cuts == {"large": 5}
    assert walk.stopped


def test_milder_networks_take_the_same_share_of_all_rates():
    """Not a part of the walk: its largest layer alone loses most of what may be lost."""
    reference, layers, measure, measured = world(COSTS, SAVINGS)
    walk = policy(reference, 0.03).prune_layers(layers, measure)
    networks = [{c.group: c.kept for c in network} for network in walk.alternatives]
    assert networks == [
        {"small": 9},  # from a ninth of 90 % on, the lowest rate that a layer has
        {"large": 9, "middle": 9, "small": 9},
        {"large": 9, "middle": 9, "small": 5},
        {"large": 5, "middle": 5, "small": 1},
    ]
    assert walk.alternatives[-1] == walk.choices
    assert all(c.probe is None for network in walk.alternatives[:-1] for c in network)
    assert len(measured) == 3  # none of them is


def test_nothing_bound_when_all_are_at_their_highest_rate():
    reference, layers, measure, _ = world({"only": {1: 0, 9: 0}}, {"only": 10})
    walk = policy(reference, 0.01).prune_layers(layers, measure)
    assert walk.cuts == {"only": 1}
    assert not walk.accuracy_bound


def test_layer_too_narrow_for_the_rates_is_no_target():
    reference, layers, measure, _ = world({"only": {9: 0}}, {"only": 10})
    narrow = Layer(group="narrow", positions=4, size=1, parameters=4, points=())
    walk = policy(reference, 0.01).prune_layers([*layers, narrow], measure)
    assert not walk.accuracy_bound
    assert walk.targets[-1].reason == "none of the rates removes one of its 1 channels"


def test_ties_go_in_forward_order():
    costs = {name: {5: 0} for name in "dbca"}
    reference, layers, measure, _ = world(costs, dict.fromkeys(costs, 10))
    assert list(policy(reference, 0.01).prune_layers(layers, measure).cuts) == list("dbca")


def test_bound_gate_is_stricter():
    reference, layers, measure, _ = world(COSTS, SAVINGS)
    point = policy(reference, 0.03).prune_layers(layers, measure)
    bound = policy(reference, 0.03, gate="bound").prune_layers(layers, measure)
    last = bound.choices[-1].verdict
    assert last.drop < last.bound <= 0.03
    assert bound.choices[-1].probe.saving < point.choices[-1].probe.saving


def test_exact_limit_passes():
    reference, layers, _, _ = world({"a": {1: 7}}, {"a": 1}, samples=100)
    assert (
        AccuracyGate(kind="point", allowed=0.07, reference=reference)
        .judge(layers[0].points[0].probe)
        .passed
    )


def test_bound_needs_outcomes():
    reference = Reference(context={}, measurement=Measurement(value=3.0), parameter_bytes=8)
    with pytest.raises(ValueError, match="bound gate pairs outcomes"):
        AccuracyGate(kind="bound", allowed=1, reference=reference)
    probe = Probe(kind="layer", cuts={"a": 1}, accuracy=2.5, saving=0.1, parameter_bytes=4)
    verdict = AccuracyGate(kind="point", allowed=0.5, reference=reference).judge(probe)
    assert (verdict.passed, verdict.drop, verdict.bound) == (True, 0.5, None)


@pytest.mark.parametrize("wrong", [{"reading": "C"}, {"gate": "luck"}, {"target_threshold": 2.0}])
def test_unknown_choices_name_the_known(wrong):
    reference, *_ = world({"a": {1: 0}}, {"a": 1})
    with pytest.raises(ValueError, match=r"known|'A' or 'B'|less than or equal to 1"):
        policy(reference, 0.1, **wrong)


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.integers(0, 40), min_size=3, max_size=3).map(sorted), min_size=1, max_size=4
    ),
    st.integers(0, 60),
)
def test_reading_a_is_greedy_and_within_the_limit(drops, allowed):
    """Every layer in turn has the highest tolerated rate that fits beside the ones before it."""
    costs = {f"l{i}": dict(zip((1, 5, 9), row, strict=True)) for i, row in enumerate(drops)}
    savings = {name: 50 - 10 * i for i, name in enumerate(costs)}
    reference, layers, measure, _ = world(costs, savings)
    walk = policy(reference, allowed / 1000).prune_layers(layers, measure)
    spent, expected = 0, {}
    for name, rates in costs.items():
        fitting = [k for k in (9, 5, 1) if rates[k] <= allowed and spent + rates[k] <= allowed]
        for k in itertools.islice(fitting, 1):
            spent += rates[k]
            expected[name] = 10 - k
    assert walk.cuts == expected


def test_rates_that_were_not_measured_count_as_tolerated():
    reference, layers, measure, _ = world(COSTS, SAVINGS)
    sparse = [
        dataclasses.replace(
            layer,
            points=(
                *(dataclasses.replace(p, probe=None) for p in layer.points[:-1]),
                layer.points[-1],
            ),
        )
        for layer in layers
        if layer.group != "brittle"
    ]
    walk = policy(reference, 0.012).prune_layers(sparse, measure)
    full = [layer for layer in layers if layer.group != "brittle"]
    assert walk.cuts == policy(reference, 0.012).prune_layers(full, measure).cuts

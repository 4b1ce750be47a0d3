"""Probes: the cut that is measured is the cut later applied, once, and kept on disk."""

from __future__ import annotations

import copy
import json
import math
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primesvt.channels import remove_channels
from primesvt.channels.widths import kept_count, widths
from primesvt.config import Method
from primesvt.evaluation.evaluator import Measurement, outcomes
from primesvt.importance import CriterionContext, keep
from primesvt.importance.magnitude import l2
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.policies import AccuracyGate
from primesvt.pruning.probe_table import Probe, ProbeTable, Reference
from primesvt.pruning.prober import Prober
from primesvt.pruning.sensitivity import check_probed, find_edges, probe_layers, width_grids

FC1, QK = "blocks.block4_0.mlp.fc1", "blocks.block4_0.attn.q+k"


def bench_for(model, graph, evaluate, table=None, progress=None):
    if not isinstance(table, ProbeTable):  # a path, or nothing
        reference = Reference(
            context={"model": "m"},
            measurement=evaluate(model),
            parameter_bytes=parameter_bytes(model),
        )
        table = ProbeTable(reference, table)
    return Prober(
        model=model, graph=graph, evaluate=evaluate, table=table, importance=l2, progress=progress
    )


def counting(dataset):
    calls = []

    def evaluate(network):
        calls.append(parameter_bytes(network))
        found = outcomes(network, dataset)
        return Measurement(value=float(found.mean()), outcomes=found)

    return evaluate, calls


@given(st.integers(1, 5000), st.integers(1, 99))
def test_kept_is_rounded_half_up_exactly(size, percent):
    exact = Decimal(size) * (100 - percent) / 100
    expected = max(1, int(exact.quantize(Decimal(1), ROUND_HALF_UP)))
    assert kept_count(size, percent / 100) == expected


def test_equal_widths_share_the_highest_rate():
    rates = [k / 10 for k in range(1, 10)]
    assert widths(3, rates) == {2: 0.5, 1: 0.9}
    assert widths(1, rates) == {}


@pytest.mark.parametrize("rates", [[], [0.0], [1.0, 0.5], [math.nan]])
def test_rates_out_of_range(rates):
    with pytest.raises(ValueError, match=r"between 0 and 1|should be a finite number"):
        Method(rates=rates)
    assert Method(rates=[0.5, 0.1, 0.5]).rates == (0.1, 0.5)


def test_probe_is_exactly_the_cut(model, graph, digits):
    evaluate, _ = counting(digits.selection)
    prober = bench_for(model, graph, evaluate)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    cuts = {FC1: 32, QK: 4}
    probe = prober.probe(cuts)

    by_hand = copy.deepcopy(model)
    evidence = CriterionContext(model=model, graph=graph)
    kept = {name: keep(l2(evidence, graph[name]), count) for name, count in cuts.items()}
    remove_channels(by_hand, graph, kept)
    before, after = (outcomes(m, digits.selection) for m in (model, by_hand))
    assert probe.accuracy == after.mean()
    assert (probe.lost, probe.gained) == ((before & ~after).sum(), (~before & after).sum())
    assert probe.samples == 60
    assert probe.parameter_bytes == parameter_bytes(by_hand)
    assert probe.saving == 1 - parameter_bytes(by_hand) / parameter_bytes(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_every_layer_alone_and_no_probe_twice(model, graph, digits):
    evaluate, calls = counting(digits.selection)
    told = []
    prober = bench_for(model, graph, evaluate, progress=lambda *c: told.append(c))
    groups = [graph[FC1], graph[QK]]
    layers = probe_layers(prober, width_grids(model, graph, groups, rates=(0.1, 0.12, 0.5, 0.9)))
    assert [(p.rate, p.kept) for p in layers[0].points] == [
        (0.1, 144),
        (0.12, 141),
        (0.5, 80),
        (0.9, 16),
    ]
    assert [(p.rate, p.kept) for p in layers[1].points] == [(0.12, 9), (0.5, 5), (0.9, 1)]
    assert len(calls) == 1 + 7
    assert told[-1] == ("probing", 7, 7)
    assert all(len(p.probe.cuts) == 1 for layer in layers for p in layer.points)
    probe_layers(prober, width_grids(model, graph, groups, rates=(0.1, 0.5)))
    assert len(calls) == 1 + 7


def test_table_survives_a_cut_line(model, graph, digits, tmp_path):
    path = tmp_path / "sensitivity.jsonl"
    evaluate, calls = counting(digits.selection)
    grids = width_grids(model, graph, [graph[FC1]], rates=(0.2, 0.5, 0.8))
    probe_layers(bench_for(model, graph, evaluate, path), grids)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines(keepends=True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        table = ProbeTable.read(path)
        lost = int(cut > 1)  # a line is whole without its line break
        assert len(table) == 3 - lost
        calls.clear()
        probe_layers(bench_for(model, graph, evaluate, table), grids)
        assert len(calls) == lost
        again = [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
        assert again == [json.loads(line) | {"seconds": 0} for line in whole.splitlines()]


def test_stored_reference_pairs_as_the_measured_one(model, graph, digits, tmp_path):
    evaluate, _ = counting(digits.selection)
    first = bench_for(model, graph, evaluate, tmp_path / "a.jsonl")
    stored = ProbeTable.read(tmp_path / "a.jsonl").reference
    assert (stored.measurement.outcomes == first.reference.measurement.outcomes).all()
    assert stored.accuracy == first.reference.accuracy
    floats = Measurement(value=0.25, outcomes=np.array([0.1, 0.4]))
    ProbeTable(Reference(context={}, measurement=floats, parameter_bytes=8), tmp_path / "b.jsonl")
    read = ProbeTable.read(tmp_path / "b.jsonl").reference
    assert (read.measurement.outcomes == floats.outcomes).all()


def test_damaged_in_the_middle_is_named(tmp_path):
    path = tmp_path / "sensitivity.jsonl"
    path.write_text('{"kind": "layer"}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*sensitivity.jsonl is no probe"):
        ProbeTable.read(path)


def test_probes_of_something_else_are_refused():
    context, measurement = {"batch_size": 4}, Measurement(value=1.0)
    table = ProbeTable(Reference(context=context, measurement=measurement, parameter_bytes=8))
    table.check({"batch_size": 4})
    with pytest.raises(ValueError, match=r"another batch size \(4, here 8\)"):
        table.check({"batch_size": 8})


def test_missing_probe_is_named(graph):
    measurement = Measurement(value=1.0)
    table = ProbeTable(Reference(context={}, measurement=measurement, parameter_bytes=8))
    table.add(Probe(kind="layer", cuts={FC1: 80}, accuracy=1, saving=0.1, parameter_bytes=9))
    check_probed(table, [graph[FC1]], [0.5])
    with pytest.raises(ValueError, match=r"no probe of blocks.block4_0.mlp.fc1 at rate 0.9"):
        check_probed(table, [graph[FC1]], [0.5, 0.9])


def test_score_with_changing_samples_is_refused(model, graph):
    sizes = iter((4, 5))
    prober = bench_for(
        model, graph, lambda _: Measurement(value=1.0, outcomes=np.ones(next(sizes), dtype=bool))
    )
    with pytest.raises(ValueError, match="another number of outcomes"):
        prober.probe({FC1: 3})


def test_outcomes_that_are_no_verdicts_get_a_spread(model, graph):
    values = iter(([0.5, 0.7, 0.9], [0.4, 0.7, 0.5]))

    def evaluate(_):
        found = np.array(next(values))
        return Measurement(value=float(found.mean()), outcomes=found)

    probe = bench_for(model, graph, evaluate).probe({FC1: 3})
    assert probe.lost is None
    assert probe.deviation == pytest.approx(np.std([0.1, 0.0, 0.4], ddof=1))


def test_edges_are_found_by_halving(model, graph, digits):
    """Against all probes: nothing above an edge that was looked at passes, and few are made."""
    evaluate, calls = counting(digits.selection)
    rates = [k / 10 for k in range(1, 10)]
    groups = [graph[FC1], graph[QK], graph["blocks.conv1b.conv1"]]
    told = []
    prober = bench_for(model, graph, evaluate, progress=lambda *row: told.append(row))
    grids = width_grids(model, graph, groups, rates=rates)
    gate = AccuracyGate(kind="point", allowed=0.05, reference=prober.reference)
    calls.clear()
    layers = find_edges(prober, grids, passes=lambda probe: gate.judge(probe).passed)
    assert len(calls) == len(prober.table) <= 5 * len(groups)
    assert told[-1][1] == len(calls)
    for layer, whole in zip(layers, probe_layers(prober, grids), strict=True):
        passed = [gate.judge(point.probe).passed for point in whole.points]
        known = [p.probe is not None and gate.judge(p.probe).passed for p in layer.points]
        edge = max((n for n, p in enumerate(known) if p), default=-1)
        assert passed[edge] or edge == -1
        assert edge + 1 == len(passed) or not passed[edge + 1]
        assert [p.rate for p in layer.points[: edge + 1]] == rates[: edge + 1][-len(known) :]
        refused = [p for p in layer.points[edge + 1 :] if p.probe is not None]
        assert len(refused) == len(layer.points) - edge - 1

"""What runs have beside sizes: operations, firing rates, energy and times, as far as measured."""

from __future__ import annotations

import pytest

from primesvt.report import changes, write_comparison, write_report
from primesvt.report.changes import cost_notes, cost_rows, firing_rates
from primesvt.report.run_files import read_run

from .runs import BYTES, costs, counted, metrics_of, write_run
from .test_page import Page

BEFORE, AFTER = counted(1.0), counted(0.5, gone=("blocks.b.lif2",))


@pytest.fixture
def run(tmp_path):
    metrics = metrics_of(
        before=costs(BYTES, 0.99, 0.98, **BEFORE), after=costs(300_000, 0.98, 0.97, **AFTER)
    )
    return write_run(tmp_path / "run", metrics=metrics)


def test_all_costs_are_rows_of_the_one_table(run):
    metrics = read_run(run).metrics
    rows = {row.measure: row for row in changes(metrics)}
    shown = {
        name: (rows[name].before, rows[name].after, rows[name].change)
        for name in ("Model file", "SynOps per image", "  with memory", "Time of a batch of 32")
    }
    assert shown == {
        "Model file": ("500.0 kB", "250.0 kB", "-50.0%"),
        "SynOps per image": ("400 k", "200 k", "-50.0%"),
        "  with memory": ("80.0 µJ", "40.0 µJ", "-50.0%"),
        "Time of a batch of 32": ("40.0 ms", "20.0 ms", "2.00x as fast"),
    }


def test_times_are_compared_batch_by_batch():
    slow = {"latency": [{"batch": 1, "milliseconds": 2.0}, {"batch": 32, "milliseconds": 40.0}]}
    fast = {"latency": [{"batch": 32, "milliseconds": 10.0}]}
    assert [row[-1] for row in cost_rows(slow, fast)] == ["4.00x as fast"]


def test_firing_rates_are_those_of_neurons_in_forward_order():
    found = firing_rates(BEFORE, AFTER)
    assert [(each.block, each.name, each.before, each.after) for each in found] == [
        ("a", "lif", 0.2, 0.1),
        ("b", "lif1", 0.3, 0.15),
        ("b", "lif2", 0.1, None),
    ]
    assert firing_rates(BEFORE, {}) == firing_rates({}, AFTER) == []


def test_formulas_and_machine_stand_beside_the_figures():
    notes = " ".join(cost_notes(AFTER))
    for phrase in ("counted on 64 inputs", "4.6 pJ", "0.9 pJ", "2 threads, a machine", "40 runs"):
        assert phrase in notes
    assert cost_notes({}) == []


def test_the_page_has_them_all(run):
    page = Page(write_report(run).read_text())
    assert {"firing", "costs"} <= set(page.values("id", tag="section"))
    for phrase in ("lif2", "gone", "15.0%", "2.00x as fast", "4.6 pJ"):
        assert phrase in page.text


def test_a_comparison_says_what_a_run_did_not_measure(run, tmp_path):
    old = write_run(tmp_path / "old")
    text = Page(write_comparison([run, old], tmp_path / "out.html").read_text()).text
    assert "Energy by operations, with memory" in text
    assert text.count("not measured") == len(cost_rows(BEFORE, AFTER))

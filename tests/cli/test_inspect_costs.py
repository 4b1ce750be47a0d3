"""What a model costs, as ``primesvt inspect`` says it."""

from __future__ import annotations

from functools import partial

import pytest

from primesvt.checkpoint.load import open_model
from primesvt.profiling.memory import membrane_bytes
from primesvt.profiling.timing import Pace, measure


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_layers_have_their_macs(primesvt):
    found = primesvt("inspect", "sdt_v2_digits", "--json").json
    macs = {row["layer"]: row["macs"] for row in found["layers"]}
    assert macs["blocks.down1a.conv"] == 8 * 8 * 8 * 9
    assert macs["head.fc"] == 2 * 40 * 10
    assert "4.61 k" in primesvt("inspect", "sdt_v2_digits").out


def test_costs_of_every_module(primesvt):
    finished = primesvt("inspect", "sdt_v2_digits", "--costs", "--data", "digits")
    assert finished.code == 0
    assert max(len(line.rstrip()) for line in finished.out.splitlines()) <= 80
    for phrase in ("Membrane", "SynOps", "Energy", "4.6 pJ", "without reuse", "64 inputs"):
        assert phrase in finished.out
    rows = [line.split() for line in finished.out.splitlines()]
    (fc,) = [row for row in rows if row[:1] == ["fc"]]
    assert fc[1:3] == ["410", "800"] and fc[-1] == "pJ"  # parameters, MACs, energy


def test_figures_of_spikes_only_with_images(primesvt):
    seen = primesvt("inspect", "sdt_v2_digits", "--costs", "--data", "digits", "--json").json
    blind = primesvt("inspect", "sdt_v2_digits", "--costs", "--json").json
    assert 0 < seen["costs"]["energy"]["operations"] < seen["costs"]["energy"]["with_memory"]
    assert 0.05 < seen["costs"]["operations"]["firing_rate"] < 0.5
    assert blind["costs"]["energy"] is None
    assert blind["costs"]["operations"]["firing_rate"] is None
    assert all(row["rate"] is None for row in blind["costs"]["operations"]["modules"])
    for name in ("macs", "multiplied"):
        assert blind["costs"]["operations"][name] == seen["costs"]["operations"][name] > 0
    model = open_model("sdt_v2_digits")
    potentials = membrane_bytes(model.model, (model.example(),))
    assert blind["costs"]["membrane_bytes_per_sample"] == potentials
    assert "give --data" in primesvt("inspect", "sdt_v2_digits", "--costs").out


def test_latency_is_told_with_machine_and_threads(primesvt, monkeypatch):
    once = partial(measure, pace=Pace(seconds=0, least=1, tick=0))
    monkeypatch.setattr("primesvt.cli.costs.measure", once)
    finished = primesvt("inspect", "sdt_v2_digits", "--latency")
    assert "for a batch of 32" in finished.out and "1 thread," in finished.out
    found = primesvt("inspect", "sdt_v2_digits", "--latency", "--json").json["costs"]["latency"]
    assert [row["batch"] for row in found] == [1, 32]
    assert all(row["threads"] == 1 and row["machine"] for row in found)


def test_data_without_costs_is_a_mistake(primesvt):
    finished = primesvt("inspect", "sdt_v2_digits", "--data", "digits")
    assert finished.code == 1
    assert "--costs" in finished.err

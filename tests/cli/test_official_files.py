"""``primesvt inspect FILE`` on the official checkpoint of every family."""

from __future__ import annotations

import pytest
import torch
from tests.checkpoint.official_files import FILES, GOLDENS, golden


@pytest.mark.parametrize("name", FILES)
def test_inspect_reads_the_file_as_it_is(name, primesvt, shared, tmp_path):
    state, _ = golden(shared / "reference", name)
    file, make = FILES[name]
    torch.save(make(state), tmp_path / file)
    case, _ = GOLDENS[name]

    finished = primesvt("inspect", tmp_path / file, "--json")
    assert finished.code == 0, finished.err
    found = finished.json
    assert found["loaded"]["family"] == case.family
    trained = {key for key in state if "running_" not in key and "num_batches" not in key}
    rates = {key for key in trained if "firing_rate" in key}
    assert found["parameters"] == sum(state[key].numel() for key in trained - rates)
    assert sum(group["prunable"] for group in found["groups"]) >= 4
    assert all(row["prunable"] or row["reason"] for row in found["layers"])


def test_inspect_tells_a_person_what_was_assumed(primesvt, shared, tmp_path, monkeypatch):
    state, _ = golden(shared / "reference", "qkformer-cifar-tiny")
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state}, "checkpoint.pth")
    out = primesvt("inspect", "checkpoint.pth").out
    for said in (
        "checkpoint.pth: QKFormer, nearest published variant: qkformer_cifar10_4_384",
        "read off the tensors: layout=cifar",
        "assumed, override by name: time_steps=4",
        "note: the images of a batch influence each other",
    ):
        assert said in out
    others = [line for line in out.splitlines() if "prunable groups" not in line]  # never wrapped
    assert max(len(line.rstrip()) for line in others) <= 80

"""The table of other people's models: what it counts, on a repository written for this test."""

from __future__ import annotations

import foreign_models
import pytest

from primesvt import compat

CODE = """
import torch
from spikingjelly.clock_driven.neuron import MultiStepLIFNode
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.entry = nn.Linear(8, hidden)
        self.lif = MultiStepLIFNode(detach_reset=True, backend="cupy")
        self.fixed = nn.Linear(hidden, 6)
        self.mixed = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.fixed(self.lif(self.entry(x)))
        if x.shape[-1] != 6:
            raise ValueError("six channels wanted")
        x = self.mixed(x)
        return self.head(self.scale * x.sort(-1).values)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "toy" / "code").mkdir(parents=True)
    (tmp_path / "toy" / "code" / "toy_net_of_somebody.py").write_text(CODE)
    monkeypatch.setattr("sys.path", list(foreign_models.sys.path))
    return tmp_path


TOY = foreign_models.Model(
    name="Toy",
    repository="somebody/toy",
    inside="code",
    make="toy_net_of_somebody:Net",
    settings={"hidden": 16},
    shape=(2, 3, 8),
)


def test_what_is_counted(folder):
    with compat.old_spikingjelly():  # which takes away what the worker installs
        traced, row = foreign_models.measured(TOY, folder)
    entry, fixed, mixed, head, unused = 8 * 16 + 16, 16 * 6 + 6, 6 * 5 + 5, 5 * 3 + 3, 2 * 2 + 2
    total = entry + fixed + mixed + head + unused + 1
    assert traced.items() <= {**row, "problems": traced["problems"]}.items()
    assert row["parameters"] == total and row["refused"] == row["frozen"] == 1
    assert row["listed"] == round((entry + fixed + mixed - 5) / total, 4)
    assert row["accepted"] == row["accepted_without_streams"] == round((entry + 16 * 6) / total, 4)
    assert row["unread"] == round(unused / total, 4) and row["outside"] == []
    (frozen, refused) = row["problems"]
    assert frozen["group"] == "mixed" and "sort" in frozen["why"]
    assert refused["group"] == "fixed" and "six channels" in refused["why"]
    page = foreign_models.table(
        [{**row, "name": "Toy", "repository": "a/b", "failed": "", "commit": ""}]
    )
    assert "| 1 | 1 | " in page and "such as `mixed`: frozen" in page


def test_what_is_not_there_is_said(folder):
    row = foreign_models.row(foreign_models.MODELS[0], folder, 1)
    assert row["failed"] == "no folder spikformer"
    assert "no folder spikformer" in foreign_models.table([row])


def test_like_reasons_are_told_once():
    problems = [
        {"group": f"block.{i}", "why": f"refused: size {i} in 'block.{i}.attn'", "share": i / 10}
        for i in range(3)
    ]
    told = list(foreign_models.summary(problems))
    assert told == [(3, 0.2, "refused: size # in '...'", "block.0")]

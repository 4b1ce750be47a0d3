"""Outcomes are per sample, in order, in evaluation mode, and leave nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from primesvt.distributed import resolve_device
from primesvt.evaluation import evaluator as evaluation
from primesvt.evaluation.evaluator import DataEvaluator, ScoreEvaluator, measured, outcomes


def test_outcomes_against_a_plain_loop(model, digits):
    found = outcomes(model, digits.selection, batch_size=16)
    with torch.no_grad():
        plain = [int(model(x[None]).argmax()) == y for x, y in digits.selection]
    assert found.dtype == bool
    assert np.mean(found == plain) >= 0.98  # sums of other batch sizes may tip a spike
    assert found.mean() > 0.9
    assert (outcomes(model, digits.selection, batch_size=16) == found).all()


def test_training_flags_and_neurons_are_put_back(model, digits, own_net):
    model.train()
    model.blocks[0].eval()
    before = [m.training for m in model.modules()]
    statistics = {name: b.clone() for name, b in model.named_buffers()}
    outcomes(model, digits.selection)
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(b, statistics[name]) for name, b in model.named_buffers())
    outcomes(own_net, digits.selection, batch_size=7)
    assert own_net.lif.v == 0.0


def test_progress_counts_samples(model, digits):
    calls = []
    outcomes(
        model, digits.selection, batch_size=25, progress=lambda *c: calls.append(c), stage="here"
    )
    assert calls == [("here", 25, 60), ("here", 50, 60), ("here", 60, 60)]


@pytest.mark.parametrize(("after", "heard"), [(0.0, [25, 50, 60]), (1e9, [])])
def test_only_a_long_measurement_is_reported(model, digits, monkeypatch, after, heard):
    calls = []
    monkeypatch.setattr(evaluation, "REPORT_AFTER", after)
    evaluate = DataEvaluator(
        splits=digits,
        batch_size=25,
        device=torch.device("cpu"),
        progress=lambda *call: calls.append(call),
    )
    evaluate(model)
    assert calls == [("measuring", done, 60) for done in heard]


class _Tuple(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x, x)


@pytest.mark.parametrize(
    ("network", "data", "phrase"),
    [
        (nn.Identity(), TensorDataset(torch.zeros(0, 3), torch.zeros(0).long()), "empty"),
        (nn.Identity(), TensorDataset(torch.eye(3), torch.tensor([0, 1, 7])), "label 7"),
        (nn.Flatten(0), TensorDataset(torch.eye(3), torch.arange(3)), r"logits.*\[9\]"),
        (_Tuple(), TensorDataset(torch.eye(3), torch.arange(3)), "tuple.*score="),
    ],
)
def test_what_cannot_be_measured(network, data, phrase):
    with pytest.raises(ValueError, match=phrase):
        outcomes(network, data)


def test_no_such_device():
    with pytest.raises(ValueError, match="'abacus'"):
        resolve_device("abacus")


@pytest.mark.parametrize(
    ("value", "mean", "vector"),
    [
        (0.5, 0.5, None),
        (np.float32(2.0), 2.0, None),
        (torch.tensor(3), 3.0, None),
        ([True, False], 0.5, bool),
        (torch.tensor([1.0, 0.0]), 0.5, bool),
        (np.array([0.25, 0.75]), 0.5, float),
    ],
)
def test_scores(value, mean, vector):
    measurement = measured(value)
    assert measurement.value == mean
    assert (None if measurement.outcomes is None else measurement.outcomes.dtype) == vector


@pytest.mark.parametrize("value", [None, "high", [], [[1.0]], float("nan"), [0.1, float("inf")]])
def test_no_scores(value):
    with pytest.raises(ValueError, match="score"):
        measured(value)


def test_score_sees_a_network_in_evaluation_mode(model):
    model.train()
    score = ScoreEvaluator(score=lambda m: float(m.training), device=torch.device("cpu"))
    assert score(model).value == 0.0
    assert model.training

"""The smooth distance against a divergence written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from primesvt.calibration import calibration_of
from primesvt.evaluation.divergence import NOT_FINITE, OutputDivergence
from primesvt.models.shared_prefix import VariantBatch


def divergence(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    total = 0.0
    for row in x:
        with torch.no_grad():
            p, q = (net(row[None]).double().softmax(1)[0] for net in (model, other))
        total += float((p * (p / q).log()).sum())
    return total / len(x)


def to(distance: OutputDivergence, model: nn.Module) -> float:
    return distance(VariantBatch(networks=[model]))[0]


def moved(model: nn.Module, by: float) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def test_kullback_leibler_per_sample_whatever_the_batches() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 5), torch.randn(17, 4)
    other = moved(model, 0.5)
    for size in (1, 5, 17):
        distance = OutputDivergence(model, calibration_of(x, batch_size=size))
        assert to(distance, model) == 0
        assert to(distance, other) == pytest.approx(divergence(model, other, x), rel=1e-5)


def test_it_grows_with_the_change_and_leaves_the_networks_alone() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)).train()
    distance = OutputDivergence(model, calibration_of(torch.randn(50, 4)))
    found = []
    for by in (0.01, 0.1, 1.0):
        torch.manual_seed(2)
        found.append(to(distance, moved(model, by)))
    assert 0 < found[0] < found[1] < found[2]
    assert model.training and model[1].training


def test_outputs_that_are_no_logits() -> None:
    model = nn.Conv1d(2, 2, 1)
    distance = OutputDivergence(model, calibration_of(torch.randn(6, 2, 5), batch_size=4))
    assert to(distance, model) == 0
    with torch.no_grad():
        model.weight.add_(1)
    assert to(distance, model) > 0


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
def test_answers_that_are_not_finite_are_farthest(shape: tuple[int, ...]) -> None:
    """And not, as comparisons with NaN would have it, the nearest of all."""
    model = nn.Identity()
    distance = OutputDivergence(model, calibration_of(torch.randn(shape)))
    for broken in (float("nan"), float("inf")):
        assert to(distance, nn.Threshold(9.0, broken)) == NOT_FINITE

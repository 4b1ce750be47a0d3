"""Layers of a pruned network are fitted to what they give in the dense one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from primesvt import Limits, prune
from primesvt.calibration import ActivationStatistics, calibration_of
from primesvt.calibration.least_squares import DAMPINGS, Pairs, fitted
from primesvt.channels import remove_channels, trace
from primesvt.models import create_model, reset
from primesvt.models.shared_prefix import VariantBatch
from primesvt.recovery import Match, Refit
from primesvt.recovery.match import ROWS, _outputs, _rows, match

from ..lively import FAMILIES, lively
from .test_recovery import cut, entering, halves

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 3), (6, 7, 5)),
    "linear of one token": (nn.Linear(5, 3), (6, 5)),
    "linear of steps": (nn.Linear(5, 3), (2, 3, 7, 5)),
    "pointwise": (nn.Conv2d(5, 3, 1, bias=False), (6, 5, 4, 4)),
    "kernel": (nn.Conv2d(5, 3, 3, padding=1), (6, 5, 4, 6)),
    "stride": (nn.Conv2d(5, 3, 3, stride=2, padding=(1, 0), dilation=2), (6, 5, 9, 8)),
    "tokens": (nn.Conv1d(5, 3, 1), (6, 5, 7)),
    "kernel of tokens": (nn.Conv1d(5, 3, 3, stride=2, padding=1), (6, 5, 9)),
    "many": (nn.Conv2d(2, 3, 3, padding=1), (300, 2, 20, 20)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_and_outputs_are_those_of_the_same_places(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(*shape)
    with torch.no_grad():
        y = layer(x)
        rows, wanted = _rows(layer, x), _outputs(layer, y)
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(rows @ layer.weight.flatten(1).T + bias, wanted)
    assert rows.shape[:-1].numel() == min(ROWS, y.numel() // 3) or name == "many"
    assert rows.shape[:-1].numel() <= ROWS


def test_the_fit_is_that_of_least_squares_by_numpy() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=draw).double() + 1
    y = x @ torch.randn(6, 3, generator=draw).double() + torch.randn(400, 3, generator=draw) * 0.1
    pairs = Pairs.none().add(x[:300], y[:300])
    held = Pairs.none().add(x[300:], y[300:])
    old = torch.randn(3, 6, generator=draw).double()
    for centred in (True, False):
        weight, bias = fitted(pairs, held, old, centred=centred)
        given, wanted = ((each - each.mean(0) if centred else each).numpy() / 20 for each in (x, y))
        near = []
        for damping in DAMPINGS:
            pull = np.sqrt(damping * np.square(given).sum(0).mean())
            design = np.concatenate([given, pull * np.eye(6)])
            target = np.concatenate([wanted, pull * old.T.numpy()])
            best = np.linalg.lstsq(design, target, rcond=None)[0].T
            near.append(np.abs(weight.numpy() - best).max())
        assert min(near) < 1e-9 < sorted(near)[1]
        assert torch.allclose(bias, y.mean(0) - weight @ x.mean(0))


def test_noise_leaves_the_weights_that_there_are() -> None:
    draw = torch.Generator().manual_seed(1)
    old = torch.randn(3, 20, generator=draw).double()

    def noisy(count: int) -> Pairs:
        x = torch.randn(count, 20, generator=draw).double()
        noise = 30 * torch.randn(count, 3, generator=draw)
        return Pairs.none().add(x, x @ old.T + noise)

    weight, _ = fitted(noisy(30), noisy(3000), old, centred=True)
    assert torch.equal(weight, old)
    few, _ = fitted(noisy(30), Pairs.none(), old, centred=True)
    assert not torch.equal(few, old)
    assert tuple(sorted(DAMPINGS)) == DAMPINGS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_come_closer_than_by_refit(family: str) -> None:
    """A third of every group goes, in all families; errors of the logits on the same inputs."""
    one = lively(family)
    kept = halves(one, [g.name for g in one.graph.prunable()])
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}

    def answer(model: nn.Module) -> Tensor:
        reset(model)
        with torch.no_grad():
            return model(one.x).double()

    wanted = answer(one.model)
    far, near = ((answer(cut(one, kept, r)) - wanted).square().mean() for r in ("refit", "match"))
    assert near < far
    after = one.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_uncut_network_stays_as_it_is(family: str) -> None:
    one = lively(family)
    same = copy.deepcopy(one.model)
    match(same, one.activity, {})
    for name, tensor in one.model.state_dict().items():
        if name.endswith("weight"):
            assert torch.equal(same.state_dict()[name], tensor), name
        elif tensor.is_floating_point():
            torch.testing.assert_close(same.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_norms_give_the_mean_and_variance_of_the_dense_network() -> None:
    one = lively("sdt_v2")
    group = next(g for g in one.graph.prunable() if g.name.endswith("mlp.fc1"))
    kept = halves(one, [group.name])
    smaller = cut(one, kept, "match")
    norm = group.name.replace("fc1", "fc2.bn")
    images = torch.cat([batch[0] for batch in one.activity.calibration])
    found, wanted = (entering(model, images, norm) for model in (smaller, one.model))
    axes = [d for d in range(found.ndim) if d != 1]
    torch.testing.assert_close(found.mean(axes), wanted.mean(axes), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.std(axes), wanted.std(axes), rtol=5e-2, atol=1e-2)


def test_a_network_of_somebodys_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 5),
    ).eval()  # fmt: skip
    x = torch.randn(64, 3, 8, 8)
    graph = trace(net, x[:2])
    activity = ActivationStatistics(
        model=net,
        graph=graph,
        groups=graph.prunable(),
        calibration=calibration_of(x, batch_size=16),
    )

    errors = []
    for kind in (Refit, Match):
        smaller, kept = copy.deepcopy(net), {"0": np.arange(8)[None], "3": np.arange(10)[None]}
        recovery = kind(activity=activity)
        recovery.before(smaller, kept)
        remove_channels(smaller, graph, kept)
        recovery.after(VariantBatch(networks=[smaller]), [kept])
        with torch.no_grad():
            errors.append(float((smaller(x) - net(x)).square().mean()))
    assert errors[1] < errors[0]


def test_a_run_with_it_says_so() -> None:
    result = prune(
        create_model("sdt_v2_digits", pretrained=True),
        data="digits",
        constraints=Limits(max_accuracy_drop=9),
        policy="uniform",
        rates=[0.25],
        include=["*.block4_0.mlp.fc1"],
        recovery="match",
        gate="point",
        verify=False,
        lossless=False,
    )
    (step,) = result.plan.steps
    assert step.recovery.endswith("all layers fitted to the dense network")
    assert result.metrics.after.test.accuracy > 0.9


class Shared(nn.Module):
    """Two layers of one weight, and one whose weight is computed from others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.one, self.two = nn.Linear(16, 8), nn.Linear(16, 8)
        self.two.weight = self.one.weight
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(self.computed(self.one(x) * self.two(x)))  # type: ignore[no-any-return]


def test_weights_that_others_use_or_that_are_computed_stay() -> None:
    net, x = Shared().eval(), torch.randn(64, 6)
    graph = trace(net, x[:2])
    activity = ActivationStatistics(
        model=net, graph=graph, groups=graph.prunable(), calibration=calibration_of(x)
    )
    kept = {"first": np.arange(9)[None]}
    smaller = copy.deepcopy(net)
    remove_channels(smaller, graph, kept)
    tied = smaller.one.weight.detach().clone()
    computed = smaller.computed.weight.detach().clone()
    last = smaller.last.weight.detach().clone()
    match(smaller, activity, kept)
    assert torch.equal(smaller.one.weight, tied) and smaller.two.weight is smaller.one.weight
    assert torch.equal(smaller.computed.weight, computed)
    assert not torch.equal(smaller.last.weight, last)

"""Least squares against numpy's, and what a refit promises for every kind of reader."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from primesvt.calibration.least_squares import DAMPING, regression
from primesvt.calibration.readers import patches
from primesvt.channels import remove_channels
from primesvt.models import reset
from primesvt.recovery.refit import refit

from ..families.drawn import SEEDS, examples
from ..lively import Lively, watched


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).double()


def cut(one: Lively, cuts: dict[str, list[list[int]]], *, fit: bool) -> nn.Module:
    kept = {name: np.array(rows, dtype=np.int64) for name, rows in cuts.items()}
    smaller = copy.deepcopy(one.model)
    if fit:
        refit(smaller, one.activity, kept)
    remove_channels(smaller, one.graph, kept)
    return smaller


def error(one: Lively, net: nn.Module) -> float:
    return float((outputs(net, one.x) - outputs(one.model, one.x)).square().mean())


@examples(30)
@given(seed=SEEDS, hidden=st.integers(2, 9), outputs=st.integers(1, 6), data=st.data())
def test_a_linear_reader_gets_the_ridge_optimum(
    seed: int, hidden: int, outputs: int, data: st.DataObject
) -> None:
    """And is never worse than one that just drops the channels."""
    torch.manual_seed(seed)
    bias = data.draw(st.booleans())
    net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=bias))
    one = watched(net.double().eval(), torch.randn(50, 3, dtype=torch.float64), batch=16)
    kept = sorted(data.draw(st.sets(st.integers(0, hidden - 1), min_size=1, max_size=hidden - 1)))
    fitted, dropped = (cut(one, {"0": [kept]}, fit=fit) for fit in (True, False))
    best = _ridge(one, kept, constant=bias)
    np.testing.assert_allclose(_predicted(fitted, one.x), best, rtol=1e-6, atol=1e-8)
    assert error(one, fitted) <= error(one, dropped) * (1 + 1e-9) + 1e-18


def _predicted(net: nn.Module, x: Tensor) -> np.ndarray:
    return outputs(net, x).numpy()


def _ridge(one: Lively, kept: list[int], *, constant: bool) -> np.ndarray:
    """The reader's output from surviving channels, by an augmented ``lstsq``."""
    hidden = outputs(one.model[:2], one.x).numpy()
    weight = one.model[2].weight.detach().numpy()
    gone = [c for c in range(hidden.shape[1]) if c not in kept]
    target = hidden[:, gone] @ weight[:, gone].T
    left = hidden[:, kept]
    center = (left.mean(0), target.mean(0)) if constant else (0.0, 0.0)
    spread = hidden - hidden.mean(0) if constant else hidden
    penalty = DAMPING * np.square(spread).mean() + 1e-12
    rows = np.vstack([left - center[0], np.sqrt(penalty * len(left)) * np.eye(len(kept))])
    right = np.vstack([target - center[1], np.zeros((len(kept), target.shape[1]))])
    mixing = np.linalg.lstsq(rows, right, rcond=None)[0]
    bias = one.model[2].bias
    own = left @ weight[:, kept].T + (0.0 if bias is None else bias.detach().numpy())
    return own + (left - center[0]) @ mixing + center[1]


class Mixed(nn.Module):
    """``first`` feeds a reader with no neuron in between; some of its rows depend on others."""

    def __init__(self, first: nn.Module, last: nn.Module, *, norm: bool = False) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.norm = nn.BatchNorm2d(last.out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.last(self.first(x)))


def combined(first: nn.Module, *, groups: int = 1) -> None:
    """Make the last channel of every group twice the first less the second of its group."""
    with torch.no_grad():
        width = first.weight.shape[0] // groups
        for start in range(0, first.weight.shape[0], width):
            for tensor in (first.weight, *([] if first.bias is None else [first.bias])):
                tensor[start + width - 1] = 2 * tensor[start] - tensor[start + 1]


READERS = {
    "1x1": lambda: nn.Conv2d(6, 5, 1, bias=False),
    "1x1 with bias": lambda: nn.Conv2d(6, 5, 1),
    "3x3": lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False),
    "3x3 without padding": lambda: nn.Conv2d(6, 5, 3),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_channel_that_others_combine_to_is_not_missed(reader: str) -> None:
    torch.manual_seed(1)
    net = Mixed(nn.Conv2d(4, 6, 1, bias=False), READERS[reader]()).eval()
    combined(net.first)
    one = watched(net, torch.randn(32, 4, 6, 6), batch=8)
    keep = {"first": [[0, 1, 2, 3, 4]]}
    fitted, dropped = (error(one, cut(one, keep, fit=fit)) for fit in (True, False))
    assert fitted < 1e-3 * dropped  # what the damping of 1 % leaves, squared
    assert dropped > 0.01


def test_a_rank_deficient_chain_is_kept_to_what_damping_leaves() -> None:
    """8 inner channels of rank 3: of any 5 that stay, all are combinations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    one = watched(net, torch.randn(32, 3, 5, 5), batch=8)
    whole = outputs(net, one.x)
    fitted = cut(one, {"0": [[0, 2, 3, 5, 7]]}, fit=True)
    assert error(one, fitted) < 1e-3 * float(whole.var())
    matrix = one.activity.moments("1").covariance
    kept, gone = torch.tensor([0, 2, 3, 5, 7]), torch.tensor([1, 4, 6])
    exact = torch.linalg.lstsq(matrix[kept][:, kept], matrix[kept][:, gone], driver="gelsd")
    rest = matrix[gone][:, gone] - matrix[gone][:, kept] @ exact.solution
    assert float(rest.abs().max()) < 1e-6  # without damping it would be exact


def test_grouped_convolutions_compensate_inside_each_group() -> None:
    torch.manual_seed(2)
    groups, width = 3, 4
    first = nn.Conv2d(12, 12, 1, groups=groups, bias=False)
    net = Mixed(first, nn.Conv2d(12, 6, 3, groups=groups)).eval()
    combined(net.first, groups=groups)
    one = watched(net, torch.randn(24, 12, 6, 6), batch=8)
    group = one.graph["first"]
    assert (group.positions, group.size) == (groups, width)
    keep = {"first": [[0, 1, 2]] * groups}
    fitted, dropped = (error(one, cut(one, keep, fit=fit)) for fit in (True, False))
    assert fitted < 3e-3 * dropped


def test_heads_may_lose_different_channels() -> None:
    torch.manual_seed(3)
    first = nn.Conv2d(8, 8, 1, groups=2)
    net = Mixed(first, nn.Conv2d(8, 4, 1, groups=2)).eval()
    one = watched(net, torch.randn(24, 8, 4, 4), batch=8)
    fitted, dropped = (
        error(one, cut(one, {"first": [[0, 2], [1, 3]]}, fit=fit)) for fit in (True, False)
    )
    assert fitted < dropped


def test_a_bias_takes_up_a_constant_channel() -> None:
    torch.manual_seed(4)
    net = Mixed(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)).eval()
    with torch.no_grad():
        net.first.weight[2], net.first.bias[2] = 0, 3.0
    one = watched(net, torch.randn(16, 3, 4, 4))
    assert error(one, cut(one, {"first": [[0, 1, 3]]}, fit=True)) < 1e-10
    assert error(one, cut(one, {"first": [[0, 1, 3]]}, fit=False)) > 0.1


def test_without_a_bias_a_batch_norm_takes_it_up_after_re_estimation() -> None:
    torch.manual_seed(4)
    net = Mixed(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False), norm=True)
    with torch.no_grad():
        net.first.weight[2], net.first.bias[2] = 0, 3.0
    x = torch.randn(64, 3, 4, 4)
    net.norm.momentum = None
    net.train()(x)
    one = watched(net.eval(), x, batch=64)
    fitted = cut(one, {"first": [[0, 1, 3]]}, fit=True)
    moved = one.model.last.weight[:, [0, 1, 3]] - fitted.last.weight
    assert float(moved.detach().abs().max()) < 1e-6  # nothing explains a constant
    fitted.norm.reset_running_stats()
    fitted.train()(x)
    assert error(one, fitted.eval()) < 1e-8


def test_with_neither_the_regression_goes_through_the_origin() -> None:
    """No bias appears, and the fit beats dropping though a constant part stays."""
    torch.manual_seed(5)
    net = Mixed(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False)).eval()
    with torch.no_grad():
        net.first.bias += 2.0
    one = watched(net, torch.randn(16, 3, 4, 4))
    fitted, dropped = (cut(one, {"first": [[0, 1, 3]]}, fit=fit) for fit in (True, False))
    assert fitted.last.bias is None
    assert error(one, fitted) < error(one, dropped)


def test_two_cuts_in_front_of_one_reader_are_solved_together() -> None:
    torch.manual_seed(6)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
            self.c = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    one = watched(Two().eval(), torch.randn(100, 4))
    names = [g.name for g in one.graph.prunable()]
    assert len(names) == 2
    kept = {name: [[0, 1]] for name in names}
    apart = cut(one, kept, fit=False)
    together = cut(one, kept, fit=True)
    assert error(one, together) < 0.05 * error(one, apart)


DEGENERATE = {
    "all silent": torch.zeros(30, 5),
    "all constant": torch.full((30, 5), 0.7),
    "one observation": torch.randn(1, 5),
    "tiny": 1e-20 * torch.randn(30, 5),
    "huge": 1e18 * torch.randn(30, 5),
    "all the same": torch.randn(30, 1).expand(30, 5),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("groups", [1, 5])
def test_no_covariance_is_too_bad(name: str, groups: int) -> None:
    rows = DEGENERATE[name].double()
    covariance = torch.cov(rows.T, correction=0).reshape(5, 5)
    for kept in ([0], [0, 2, 3], [0, 1, 2, 3]):
        gone = [c for c in range(5) if c not in kept]
        mixing = regression(covariance, torch.tensor(kept), torch.tensor(gone), groups)
        assert mixing.shape == (len(gone), len(kept))
        assert mixing.isfinite().all() and float(mixing.abs().max()) < 1e3


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_network_that_sees_such_inputs_stays_finite(name: str) -> None:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).eval()
    one = watched(net, DEGENERATE[name].clone())
    fitted = cut(one, {"0": [[1, 2, 4]]}, fit=True)
    assert all(p.isfinite().all() for p in fitted.parameters())


def test_only_readers_of_what_is_cut_change() -> None:
    torch.manual_seed(8)
    net = nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    ).eval()
    one = watched(net, torch.randn(20, 3))
    copied = copy.deepcopy(net)
    refit(copied, one.activity, {"0": np.arange(6)[None]})  # nothing goes
    assert all(
        torch.equal(a, b) for a, b in zip(copied.parameters(), net.parameters(), strict=True)
    )
    refit(copied, one.activity, {"0": np.array([[0, 1, 2, 3]])})
    changed = {n for n, p in copied.named_parameters() if not torch.equal(p, net.get_parameter(n))}
    assert changed == {"2.weight", "2.bias"}


@pytest.mark.parametrize("stride", [1, 2])
def test_a_larger_kernel_gets_the_ridge_optimum_on_patches(stride: int) -> None:
    """Zeros of the padding are inputs like others, so borders are right too."""
    torch.manual_seed(8)
    last = nn.Conv2d(5, 3, 3, stride, padding=1)
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), last).double().eval()
    one = watched(net, torch.randn(12, 2, 6, 6, dtype=torch.float64), batch=4)
    fitted = outputs(cut(one, {"0": [[0, 1, 3]]}, fit=True), one.x).numpy()

    hidden = outputs(net[:2], one.x)
    columns = nn.functional.unfold(hidden, 3, padding=1, stride=stride)
    rows = columns.transpose(1, 2).flatten(0, 1).numpy()
    left = np.isin(np.arange(45) // 9, [0, 1, 3])
    weight = last.weight.detach().flatten(1).numpy()
    center = rows - rows.mean(0)
    penalty = DAMPING * np.square(center).mean() + 1e-12
    stacked = np.vstack([center[:, left], np.sqrt(penalty * len(rows)) * np.eye(27)])
    target = np.vstack([center[:, ~left] @ weight[:, ~left].T, np.zeros((27, 3))])
    mixing = np.linalg.lstsq(stacked, target, rcond=None)[0]
    wanted = rows[:, left] @ weight[:, left].T + last.bias.detach().numpy()
    wanted += center[:, left] @ mixing + rows.mean(0)[~left] @ weight[:, ~left].T
    found = fitted.reshape(12, 3, -1).transpose(0, 2, 1).reshape(-1, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


def test_a_kernel_too_wide_for_patches_gets_a_mixing_of_channels(monkeypatch) -> None:
    torch.manual_seed(9)
    net = Mixed(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=1)).eval()
    x = torch.randn(32, 4, 6, 6)
    keep = {"first": [[0, 2, 3, 5]]}
    told, errors = [], []
    for largest in (6 * 9, 6 * 9 - 1):
        monkeypatch.setattr("primesvt.calibration.readers.LARGEST", largest)
        one = watched(net, x, batch=8)
        told.append([reader.taps for reader in one.activity.readers["first"]])
        errors.append(error(one, cut(one, keep, fit=True)))
    assert told == [[9], [1]]
    assert errors[0] < errors[1] < error(one, cut(one, keep, fit=False))


def test_many_patches_are_spread_over_images_and_places(monkeypatch) -> None:
    monkeypatch.setattr("primesvt.calibration.readers.ROWS", 80)
    monkeypatch.setattr("primesvt.calibration.readers.IMAGES", 4)
    layer = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.arange(10.0)[:, None, None, None] + torch.linspace(0, 0.5, 25).reshape(5, 5)
    rows = patches(layer, x)
    assert rows.shape == (80, 9)
    seen = rows[:, 4]
    assert sorted(set(seen.floor().tolist())) == [0.0, 3.0, 6.0, 9.0]
    assert len(set((seen - seen.floor()).round(decimals=3).tolist())) >= 20


def test_a_multi_step_convolution_is_seen_with_its_time_steps() -> None:
    torch.manual_seed(10)
    net = nn.Sequential(
        layer.Conv2d(1, 6, 3, padding=1, step_mode="m"),
        neuron.LIFNode(step_mode="m", v_threshold=0.2),
        layer.Conv2d(6, 4, 3, padding=1, step_mode="m"),
    ).eval()
    one = watched(net, torch.rand(4, 8, 1, 6, 6), batch=4)  # a batch is all time steps
    keep = {"0": [[0, 2, 3, 5]]}
    assert [reader.taps for reader in one.activity.readers["0"]] == [9]
    reset(net)
    fitted = cut(one, keep, fit=True)
    assert not torch.equal(fitted[2].weight, net[2].weight[:, [0, 2, 3, 5]])


def test_patches_of_a_single_image_without_a_batch() -> None:
    assert patches(nn.Conv2d(2, 1, 3, padding=1), torch.ones(2, 4, 4)).shape == (16, 18)

"""Re-estimation: which norms change, to what, and that everything else is as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from primesvt.calibration import calibration_of
from primesvt.recovery.batchnorm import reestimate

from ..channels.firing import state_bytes


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)]
    return nn.Sequential(*layers).eval()


def test_statistics_are_numpys() -> None:
    model, x = net(), torch.randn(12, 1, 8, 8)
    reestimate(model, calibration_of(x, batch_size=12), ["1"])
    with torch.no_grad():
        seen = model[0](x).double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(model[1].running_mean.numpy(), seen.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model[1].running_var.numpy(), seen.var(1, ddof=1), rtol=1e-4)


def test_batches_are_averaged() -> None:
    model, x = net(), torch.randn(12, 1, 8, 8)
    reestimate(model, calibration_of(x, batch_size=4), ["1"])
    with torch.no_grad():
        parts = [model[0](part).double().transpose(0, 1).flatten(1).var(1) for part in x.split(4)]
    expected = torch.stack(parts).mean(0).numpy()
    np.testing.assert_allclose(model[1].running_var.numpy(), expected, rtol=1e-4)


def test_a_later_norm_sees_what_an_earlier_one_will_give() -> None:
    model, x = net(), 5 + 3 * torch.randn(12, 1, 8, 8)
    inputs = calibration_of(x, batch_size=12)
    reestimate(model, inputs, ["1", "3"])
    together = model[3].running_var.clone()
    reestimate(model, inputs, ["3"])  # the first is right now
    torch.testing.assert_close(model[3].running_var, together, rtol=1e-2, atol=1e-6)


def test_nothing_else_changes() -> None:
    model, x = net(), torch.randn(12, 1, 8, 8)
    model[1].train()
    model[1].momentum, model[3].momentum = 0.2, 0.3
    before = state_bytes(model)
    reestimate(model, calibration_of(x), ["3"])
    after = state_bytes(model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}
    assert [module.training for module in model] == [False, True, False, False]
    assert (model[1].momentum, model[3].momentum) == (0.2, 0.3)
    assert all(p.grad is None for p in model.parameters())


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no more")


def test_flags_and_momentum_come_back_when_the_forward_raises() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), Fails()).eval()
    model[0].momentum = 0.2
    with pytest.raises(RuntimeError, match="no more"):
        reestimate(model, calibration_of(torch.randn(4, 1, 8, 8)), ["0"])
    assert not model[0].training and model[0].momentum == 0.2


def test_norms_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)).eval()
    reestimate(model, calibration_of(torch.randn(4, 1, 8, 8)), ["0"])
    assert model[0].running_mean is None


def test_a_norm_that_only_sees_single_values_keeps_what_it_knew() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    model[0].running_mean.fill_(7.0)
    model[0].running_var.fill_(2.0)
    reestimate(model, calibration_of(torch.randn(3, 3), batch_size=1), ["0"])
    assert model[0].running_mean.tolist() == [7.0] * 3
    assert model[0].running_var.tolist() == [2.0] * 3


def test_a_last_batch_of_one_sample_is_no_error() -> None:
    """One value per channel has no variance: PyTorch refuses it in training mode."""
    model, x = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval(), torch.randn(9, 2)
    reestimate(model, calibration_of(x, batch_size=4), ["1"])
    with torch.no_grad():
        parts = torch.stack([model[0](part).mean(0) for part in (x[:4], x[4:8])])
    torch.testing.assert_close(model[1].running_mean, parts.mean(0))
    assert not model[1].training

"""Re-estimation: which norms change, to what, and that everything else is as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from primesvt.calibration import calibration_of
from primesvt.calibration.norm_inputs import seen_by
from primesvt.models.shared_prefix import VariantBatch
from primesvt.recovery.batchnorm import reestimate

from ..channels.firing import state_bytes


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)]
    model = nn.Sequential(*layers).eval()
    for norm in (model[1], model[3]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return model


def follow(original: nn.Module, changed: nn.Module, x: Tensor, batch_size: int = 12) -> None:
    inputs = calibration_of(x, batch_size=batch_size)
    reestimate(VariantBatch(networks=[changed]), inputs, seen_by(original, inputs), [{}])


def shifted() -> tuple[nn.Sequential, nn.Sequential]:
    """A network, and one whose first layer gives twice as much plus one."""
    model = net()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(2)
        other[0].bias.mul_(2).add_(1)
    return model, other


def test_a_norm_follows_what_changed_in_front_of_it() -> None:
    model, other = shifted()
    x = torch.randn(12, 1, 8, 8)
    follow(model, other, x)
    with torch.no_grad():
        seen = [m[0](x).double().transpose(0, 1).flatten(1) for m in (model, other)]
    scale = seen[1].var(1, correction=0) / seen[0].var(1, correction=0)
    centre = seen[1].mean(1) - (seen[0].mean(1) - model[1].running_mean) * scale.sqrt()
    expected = centre.float(), (model[1].running_var * scale).float()
    torch.testing.assert_close(other[1].running_mean, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other[1].running_var, expected[1], rtol=1e-4, atol=1e-5)


def test_later_norms_see_what_earlier_ones_will_give() -> None:
    """A norm undoes scale and shift of the layer in front of it: nothing behind it changes."""
    model, other = shifted()
    x = torch.randn(12, 1, 8, 8)
    follow(model, other, x)
    torch.testing.assert_close(other[3].running_mean, model[3].running_mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other[3].running_var, model[3].running_var, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-3, atol=1e-3)


def test_what_is_the_same_stays_bit_by_bit() -> None:
    model = net()
    same = copy.deepcopy(model)
    follow(model, same, 3 + torch.randn(13, 1, 8, 8), batch_size=4)
    assert state_bytes(same) == state_bytes(model)


def test_batches_count_by_their_size() -> None:
    model, other = shifted()
    x = torch.randn(12, 1, 8, 8) * torch.linspace(0.1, 3, 12)[:, None, None, None]
    follow(model, other, x, batch_size=8)
    parts = []
    for batch in x.split(8):
        alone = copy.deepcopy(shifted()[1])
        follow(model, alone, batch)
        parts.append(alone[1].running_var.double() * len(batch))
    expected = (sum(parts) / 12).float()
    torch.testing.assert_close(other[1].running_var, expected, rtol=1e-4, atol=1e-5)


def test_kept_channels_are_compared_with_their_own() -> None:
    model = net()
    small = copy.deepcopy(model)
    keep = torch.tensor([0, 2])
    for layer in (small[0], small[1]):
        layer.weight = nn.Parameter(layer.weight[keep])
        layer.bias = nn.Parameter(layer.bias[keep])
    small[1].running_mean, small[1].running_var = (
        t[keep] for t in (small[1].running_mean, small[1].running_var)
    )
    small[2].weight = nn.Parameter(small[2].weight[:, keep])
    inputs = calibration_of(torch.randn(12, 1, 8, 8), batch_size=4)
    reestimate(VariantBatch(networks=[small]), inputs, seen_by(model, inputs), [{"1": keep}])
    assert torch.equal(small[1].running_mean, model[1].running_mean[keep])
    assert torch.equal(small[1].running_var, model[1].running_var[keep])
    assert not torch.equal(small[3].running_mean, model[3].running_mean)


def test_nothing_but_statistics_changes() -> None:
    model, other = shifted()
    other[1].train()
    other[1].momentum = 0.2
    before = state_bytes(other)
    follow(model, other, torch.randn(12, 1, 8, 8))
    after = state_bytes(other)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {f"{n}.running_{what}" for n in (1, 3) for what in ("mean", "var")}
    assert {"1.running_mean", "1.running_var"} <= changed
    assert [module.training for module in other] == [False, True, False, False]
    assert other[1].momentum == 0.2
    assert all(p.grad is None for p in other.parameters())
    assert not any(module._forward_pre_hooks for module in other)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no more")


def test_hooks_go_when_the_forward_raises() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1)).eval()
    inputs = calibration_of(torch.randn(4, 1, 8, 8))
    seen = seen_by(model, inputs)
    broken = nn.Sequential(nn.BatchNorm2d(1), Fails()).eval()
    with pytest.raises(RuntimeError, match="no more"):
        reestimate(VariantBatch(networks=[broken]), inputs, seen, [{}])
    assert not broken[0]._forward_pre_hooks and not broken.training


def test_norms_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)).eval()
    follow(model, model, torch.randn(4, 1, 8, 8))
    assert model[0].running_mean is None


def test_single_values_per_channel_move_the_mean_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias.add_(1)
    follow(model, other, torch.randn(3, 2), batch_size=1)
    torch.testing.assert_close(other[1].running_mean, torch.ones(3), rtol=1e-4, atol=1e-5)
    assert torch.equal(other[1].running_var, torch.ones(3))


class PerStep(nn.Module):
    """A norm that is called once a time step, as in single-step spiking networks."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(2, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.bn(self.fc(part)) for part in x.unbind(1)]).mean(0)


def test_every_call_is_paired_with_its_own() -> None:
    model = PerStep().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.bias.add_(0.5)
    follow(model, other, torch.randn(6, 4, 2), batch_size=3)
    torch.testing.assert_close(other.bn.running_mean, torch.full((3,), 0.5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.bn.running_var, torch.ones(3), rtol=1e-4, atol=1e-5)

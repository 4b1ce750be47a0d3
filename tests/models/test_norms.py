"""Norms are told by what they compute: with factors, of sequences, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from primesvt import Limits, export, prune
from primesvt.exporting.batchnorm_folding import fold_norms
from primesvt.models.norms import affine_of, is_norm


class Half(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Own(nn.Module):
    """A batch norm written by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-3
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (v.view(1, -1, 1, 1) for v in (self.running_mean, self.running_var))
        return (x - mean) * (var + self.eps).rsqrt() * self.gain.view(1, -1, 1, 1)


class Ignores(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, 1, 1)


class Squared(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def td(channels: int) -> nn.Module:
    return layer.ThresholdDependentBatchNorm2d(0.5, 1.5, channels)


def te(channels: int) -> nn.Module:
    made = layer.TemporalEffectiveBatchNorm2d(4, channels)
    nn.init.uniform_(made.scale, 0.5, 2)
    return made


NORMS: dict[str, tuple[Callable[[int], nn.Module], bool, bool]] = {  # a norm; a scale and shift
    "plain": (nn.BatchNorm2d, True, True),
    "sync": (nn.SyncBatchNorm, True, True),
    "half": (Half, True, True),
    "own": (Own, True, True),
    "tdBN": (td, True, True),
    "TEBN": (te, True, False),
    "squared": (Squared, True, False),
    "ignores": (Ignores, False, False),
    "group": (lambda n: nn.GroupNorm(2, n), False, False),
}


def random_statistics(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_var.uniform_(0.3, 2, generator=draw)
            module.running_mean.normal_(generator=draw)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_told_by_what_it_computes(name: str) -> None:
    make, norm, affine = NORMS[name]
    module = make(6).eval()
    random_statistics(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert is_norm(module) is norm
    if norm:
        found = affine_of(module)
        assert (found is not None) is affine
        if found is not None:
            shape = (3, 2, 6, 4, 4) if getattr(module, "step_mode", "s") == "m" else (2, 6, 4, 4)
            x = torch.randn(shape)
            scale, shift = (part.float().view(-1, 1, 1) for part in found)
            torch.testing.assert_close(module(x).detach(), x * scale + shift)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.lif = nn.Conv2d(3, 16, 3, padding=1), neuron.LIFNode()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), norm
        self.fire, self.fc = neuron.LIFNode(), nn.Linear(16 * 36, 4)
        random_statistics(self)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.conv(self.lif(self.first(x))) for _ in range(4)])
        sequence = getattr(self.norm, "step_mode", "s") == "m"
        normed = self.norm(y) if sequence else torch.stack([self.norm(step) for step in y])
        return torch.stack([self.fc(self.fire(step).flatten(1)) for step in normed]).mean(0)


IMAGES = torch.rand(120, 3, 6, 6, generator=torch.Generator().manual_seed(5)) * 4


def answer(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        found: Tensor = net(x)
    functional.reset_net(net)
    return found


@pytest.mark.parametrize("name", ["plain", "sync", "half", "own", "tdBN", "TEBN"])
def test_recovery_reaches_every_norm(name: str) -> None:
    net = Net(NORMS[name][0](16)).eval()
    asked: dict[str, Any] = {"policy": "uniform", "rates": [0.5], "include": ["first"]}
    asked |= {"importance": "l2", "recovery": "bn", "gate": "point", "lossless": False}
    data = TensorDataset(IMAGES, answer(net, IMAGES).argmax(1))
    result = prune(net, data=data, constraints=Limits(max_accuracy_drop=95), **asked)
    assert result.plan.steps[0].recovery == "batch norm only"
    moved = result.model.norm.running_mean - net.norm.running_mean
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["half", "tdBN", "TEBN", "squared", "ignores"])
def test_an_exported_network_computes_the_same(name: str, tmp_path) -> None:
    import onnxruntime

    net = Net(NORMS[name][0](16)).eval()
    made = export(net, tmp_path / "net.onnx", example_input=IMAGES)
    session = onnxruntime.InferenceSession(str(made.path))
    found = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), answer(net, IMAGES), atol=1e-4, rtol=1e-4)
    assert made.agreement.equal_spikes == 1.0


def test_a_norm_that_is_no_scale_and_shift_is_not_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Squared(6), nn.Conv2d(6, 6, 1), Half(6)).eval()
    random_statistics(net)
    expected = answer(net, IMAGES)
    assert fold_norms(net, (IMAGES[:2],)).folded == ("3",)
    assert isinstance(net[1], Squared)
    torch.testing.assert_close(answer(net, IMAGES), expected)


class Modes(nn.BatchNorm2d):
    """One class that is a norm, or passes its input on."""

    off = False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.off else super().forward(x)


def test_modules_of_one_class_are_told_apart() -> None:
    on, off = Modes(6).eval(), Modes(6).eval()
    off.off = True
    random_statistics(nn.ModuleList([on, off]))
    assert is_norm(on) and not is_norm(off)


def test_a_norm_with_hooks_or_a_forward_of_its_own_is_not_folded_as_a_plain_one() -> None:
    net = nn.Sequential(*(m for _ in range(3) for m in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))))
    random_statistics(net.eval())
    net[1].register_forward_hook(lambda module, args, out: out * 2)
    net[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    net[5].forward = MethodType(lambda module, x: nn.BatchNorm2d.forward(module, x) * 3, net[5])
    expected = answer(net, IMAGES)
    assert fold_norms(net, (IMAGES[:2],)).folded == ("5",)
    torch.testing.assert_close(answer(net, IMAGES), expected)


def test_weights_of_zero_hide_no_norm() -> None:
    """What is known of a class is not from weights with which nothing would show."""

    class Other(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0

    first = Other(5)
    nn.init.zeros_(first.weight)
    assert is_norm(first) and is_norm(Other(5))
    assert not first.weight.any()

"""Neurons that people write are recognised by what they do: they fire, and keep potentials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from primesvt import prune
from primesvt.models.neurons import own_neurons
from primesvt.models.state import settle
from primesvt.profiling.memory import membrane_bytes
from primesvt.profiling.operations import count_operations


class OwnLIF(nn.Module):
    """Keeps its potential between calls; the threshold is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.mem: Tensor | None = None
        self.threshold = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        self.mem = x if self.mem is None else self.mem * 0.5 + x
        spikes = (self.mem >= self.threshold).to(x)
        self.mem = self.mem - spikes * self.threshold
        return spikes


class Ternary(nn.Module):
    """Runs over time itself, and fires with either sign."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for current in x:
            self.v = self.v + (current - self.v) / 2
            spike = (self.v > 1).to(x) - (self.v < -1).to(x)
            self.v = self.v * (1 - spike.abs())
            out.append(spike)
        return torch.stack(out)


class Integer(nn.Module):
    """Counts of spikes, a quarter each, without a state."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 4).round() / 4


class Net(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b = nn.Linear(8, 16), OwnLIF(), nn.Linear(16, 12)
        self.last, self.c, self.scale = last, nn.Linear(12, 4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.n(self.a(x.flatten(1)) * 3) for _ in range(3)])
        return self.scale(self.c(self.last(self.b(y) * 5)).mean(0))


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("last", "kept"), [(Ternary, 12), (Integer, 0)])
def test_state_spikes_and_rates_are_counted(last: Callable[[], nn.Module], kept: int) -> None:
    net = Net(last()).eval()
    settle(net, (X,))
    assert [name for name, _, _ in own_neurons(net)] == ["n", "last"]
    assert membrane_bytes(net, (X,)) == 4 * (16 + kept)
    found = count_operations(net, [(X,)])
    assert found.state_bytes == 2 * 3 * 4 * (16 + kept)
    by_name = {costs.module: costs for costs in found.modules}
    assert by_name["n"].membrane_bytes == 64 and by_name["last"].membrane_bytes == 4 * kept
    with torch.no_grad():
        seen: list[Tensor] = []
        net.last.register_forward_hook(lambda *given: seen.append(given[2]))
        settle(net, (X,))
        net(X)
    unit = 0.25 if last is Integer else 1.0
    counts = (seen[-1] / unit).abs()
    assert by_name["last"].rate == pytest.approx(float(counts.mean()))
    assert by_name["c"].macs == 3 * 12 * 4 and by_name["c"].multiplied == 0
    assert by_name["c"].synops == pytest.approx(float(counts.sum()) * 4 / len(X))


def test_what_is_no_neuron_is_not_taken_for_one() -> None:
    """A pooling of spikes, a mask and a module with weights; silence shows nothing."""

    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x.detach().abs() > 0.1)

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.roll(1, -1)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return (self.fc(x) > 0).to(x)

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 100).to(x)

    net = nn.Sequential(Mask(), Layer(), Pool(), nn.Linear(8, 8), Silent()).eval()
    settle(net, (X,))
    assert list(own_neurons(net)) == []
    assert membrane_bytes(net, (X,)) is None, "what fires there is not counted, and is said so"


def test_a_run_counts_them() -> None:
    net = Net(Ternary()).eval()
    images = torch.randn(80, 2, 2, 2)
    with torch.no_grad():
        labels = torch.cat([Net(Ternary()).eval()(x[None]).argmax(1) for x in images])
    result = prune(
        net,
        data=TensorDataset(images, labels),
        max_accuracy_drop=20.0,
        policy="uniform",
        rates=[0.25],
        gate="point",
        seed=0,
    )
    before, after = result.metrics.before, result.metrics.after
    assert before.membrane_bytes_per_sample == 4 * 28
    assert after.membrane_bytes_per_sample is not None
    assert after.operations.firing_rate is not None and before.operations.state_bytes is not None
    if result.plan.groups:
        assert after.membrane_bytes_per_sample < before.membrane_bytes_per_sample

"""Modules as people write them: dtypes of their own, kept tensors, heads that only train."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from primesvt import Limits, prune, trace, verify
from primesvt.channels.surgery import remove_channels
from primesvt.channels.verification import trial_cut

IMAGES = torch.rand(120, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Two convolutions and a classifier; ``mid`` stands between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 1)
        self.fc = nn.Linear(12 * 36, 4)

    def mid(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.mid(self.second(F.relu(self.first(x)))).flatten(1))


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.gt(0.1).float()


class CastInside(Base):
    def mid(self, y: Tensor) -> Tensor:
        return Spike.apply(y) + torch.zeros(y.shape[1:])  # type: ignore[no-any-return]


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.second(F.relu(self.first(x)))
        return self.fc(y.float().flatten(1))  # type: ignore[no-any-return]


class WholeNumberFirst(Base):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.steps = nn.Parameter(torch.tensor(4), requires_grad=False)
        made = Base()
        self.first, self.second, self.fc = made.first, made.second, made.fc


class PlainTensor(Base):
    def __init__(self) -> None:
        super().__init__()
        self.transform = torch.linalg.qr(torch.randn(36, 36))[0]  # neither buffer nor parameter

    def mid(self, y: Tensor) -> Tensor:
        return (y.flatten(2) @ self.transform).reshape(y.shape)


NETS: dict[str, Callable[[], nn.Module]] = {
    "float() inside": CastInside,
    "autocast inside": Autocast,
    "whole number first": WholeNumberFirst,
    "plain tensor": PlainTensor,
    "bfloat16": lambda: Base().bfloat16(),
    "double": lambda: Base().double(),
}


@pytest.mark.parametrize("name", NETS)
def test_dtypes_of_its_own(name: str) -> None:
    """Data are single precision; the cut is checked, and what is cut runs."""
    net = NETS[name]().eval()
    own = net.first.weight.dtype
    with torch.no_grad():
        labels = net(IMAGES.to(own)).argmax(1)
    result = prune(
        net,
        data=TensorDataset(IMAGES, labels),
        constraints=Limits(max_accuracy_drop=90),
        policy="uniform",
        rates=[0.5],
        gate="point",
    )
    assert result.refusals == () and result.metrics.before.test.accuracy == 1.0
    assert result.model.first.weight.shape[0] == 8
    assert result.model.first.weight.dtype == own
    assert net.first.weight.dtype == own and torch.get_default_dtype() == torch.float32


class WrongConstant(CastInside):
    def mid(self, y: Tensor) -> Tensor:
        return super().mid(y) * y.shape[1] ** 0.5


def test_a_constant_that_follows_the_width_is_found_in_any_dtype() -> None:
    net = WrongConstant().eval()
    graph = replace(trace(net, IMAGES[:2]), rewrites=())
    assert [r.group for r in verify(net, graph)] == ["second"]


class Holds(nn.Module):
    """Keeps a tensor with a graph, and a lock, which nothing can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.map: Any = None
        self.log: list[Tensor] = []
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        self.map = x
        self.log = [x]
        return x.relu()


def test_tensors_with_a_graph_and_locks_are_no_hindrance() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Holds(), nn.Flatten(), nn.Linear(288, 4))
    net(IMAGES[:4]).sum().backward()
    kept, lock = net[1].map, net[1].lock
    graph = trace(net.eval(), IMAGES[:2])
    assert [group.name for group in graph.prunable()] == ["0"] and verify(net, graph) == []
    assert net[1].map is kept and kept.requires_grad and net[1].lock is lock


def test_a_weight_computed_from_others_after_a_training_step() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm's own
        normed = nn.utils.weight_norm(nn.Conv2d(8, 8, 1))
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), normed, nn.Flatten(), nn.Linear(288, 4))
    net(IMAGES[:4]).sum().backward()
    assert len(trace(net.eval(), IMAGES[:2])) > 0


class PerStep(nn.Module):
    """Has a weight for every time step, and an attribute of the name that our models use."""

    def __init__(self) -> None:
        super().__init__()
        self.time_steps = 4
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.rand(4, 1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.conv(x) for _ in range(self.time_steps)]) * self.gain
        return self.fc(y.mean((0, 3, 4)))  # type: ignore[no-any-return]


def test_the_time_steps_of_somebodys_module_stay() -> None:
    net = PerStep().eval()
    graph = trace(net, IMAGES[:2])
    assert "gain[2]" in {str(member) for member in graph["conv"].members}
    assert verify(net, graph) == [] and net.time_steps == 4


class TwoHeads(Base):
    """A head that only training reads."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 4))

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.first(x))
        y = self.fc(F.relu(self.second(h)).flatten(1))
        return (y, self.aux(h)) if self.training else y


def test_a_head_that_only_training_reads_is_cut_along() -> None:
    net = TwoHeads().eval()
    graph = trace(net, IMAGES[:2])
    assert graph.unread == () and not net.training
    remove_channels(net, graph, {"first": trial_cut(graph["first"], 0.5)})
    assert net.aux[2].weight.shape == (4, 8 * 36) and net.aux[0].running_mean.shape == (8,)
    logits, more = net.train()(IMAGES[:4])
    assert logits.shape == more.shape == (4, 4)


class WantsLabels(TwoHeads):
    """Its training forward does not run on images alone."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        if self.training and labels is None:
            raise TypeError("labels are missing")
        return super().forward(x)


def test_what_no_forward_reads_is_named_before_the_search() -> None:
    net = WantsLabels().eval()
    with torch.no_grad():
        labels = net(IMAGES).argmax(1)
    told: list[str] = []
    with pytest.warns(UserWarning, match="No forward that could be traced reads aux.0.weight, aux"):
        result = prune(
            net,
            data=TensorDataset(IMAGES, labels),
            constraints=Limits(max_accuracy_drop=90),
            policy="uniform",
            rates=[0.5],
            gate="point",
            progress=lambda stage, done, total: told.append(stage),
        )
    assert any("they keep their shapes" in note for note in result.metrics.notes)
    assert result.model.aux[2].weight.shape == (4, 16 * 36)


class Cell(nn.Module):
    """A neuron as Norse has it: constants in a named tuple of tensors, state handed in and out."""

    class Constants(NamedTuple):
        leak: Tensor
        threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.p = self.Constants(leak=torch.as_tensor(0.5), threshold=torch.as_tensor([0.3]))

    def forward(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        v = x if v is None else v * self.p.leak + x
        spikes = torch.heaviside(v - self.p.threshold, torch.as_tensor(0.0, dtype=v.dtype))
        return spikes, v - spikes * self.p.threshold


def test_constants_in_a_named_tuple_forbid_no_cut() -> None:
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.ModuleList([Cell(), Cell()])

        def forward(self, x: Tensor) -> Tensor:
            v: list[Tensor | None] = [None, None]
            out = torch.zeros(())
            for _ in range(3):
                y, v[0] = self.cells[0](self.first(x), v[0])
                y, v[1] = self.cells[1](self.second(y), v[1])
                out = out + self.fc(y.flatten(1))
            return out

    net = Net().eval()
    graph = trace(net, IMAGES[:2])
    assert {g.name: g.status for g in graph} == {
        "first": "free", "second": "free", "fc": "protected"
    }  # fmt: skip
    assert verify(net, graph) == []

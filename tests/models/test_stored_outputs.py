"""Outputs of modules are reused where nothing before them differs, and never otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from primesvt.channels import remove_channels, trace
from primesvt.models.shared_prefix import VariantBatch
from primesvt.models.state import settle
from primesvt.models.stored_outputs import ActivationCache, StoredOutputs


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.bn = (
            nn.Linear(dim, 2 * dim),
            nn.Linear(2 * dim, dim),
            nn.BatchNorm1d(dim),
        )
        self.lif = neuron.LIFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.lif(self.fc1(x)))
        return x + self.bn(y.flatten(0, 1)).view_as(x)


class Net(nn.Module):
    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(blocks))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x.expand(3, *x.shape) * 4)
        for block in self.blocks:
            y = block(y).relu_()  # writes to what a block gave
        return self.head(y.mean(0))


def alone(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        return net(x)


def cut(net: nn.Module, group: str, kept: list[int]) -> nn.Module:
    smaller = copy.deepcopy(net)
    remove_channels(smaller, trace(net, torch.zeros(2, 5)), {group: kept})
    return smaller


def test_variants_give_bit_by_bit_what_they_give_alone() -> None:
    net, stored = Net().eval(), StoredOutputs(cache=ActivationCache(ceiling=10**7))
    batches = [torch.randn(6, 5) for _ in range(3)]
    networks = [cut(net, f"blocks.{i}.fc1", list(range(3 + j))) for i in (3, 2, 1) for j in (0, 1)]
    for network in [net, *networks, net]:
        batch = VariantBatch(networks=[network], stored=stored)
        with batch.evaluating():
            for number, x in enumerate(batches):
                assert torch.equal(batch(x, data="x", batch=number)[0], alone(network, x))
    assert stored.reused > 20


def test_other_data_and_other_batches_are_told_apart() -> None:
    net, stored = Net().eval(), StoredOutputs(cache=ActivationCache(ceiling=10**7))
    batch = VariantBatch(networks=[net, copy.deepcopy(net)], stored=stored)
    x, y = torch.randn(2, 4, 5)
    with batch.evaluating():
        for _ in range(3):
            assert torch.equal(batch(x, data="x", batch=0)[1], alone(net, x))
            assert torch.equal(batch(y, data="x", batch=1)[1], alone(net, y))
            assert torch.equal(batch(y, data="y", batch=0)[1], alone(net, y))
        before = stored.reused
        assert torch.equal(batch(y)[1], alone(net, y)), "data without a name is never reused"
        assert stored.reused == before


@pytest.mark.parametrize("change", ["weight", "buffer", "attribute", "tied"])
def test_whatever_differs_is_computed_again(change: str) -> None:
    net, stored, x = (
        Net().eval(),
        StoredOutputs(cache=ActivationCache(ceiling=10**7)),
        torch.randn(4, 5),
    )
    if change == "tied":  # a weight of the last block is read by the first one
        net.blocks[0].fc2.weight = net.blocks[3].fc2.weight
    other = copy.deepcopy(net)
    with torch.no_grad():
        if change in ("weight", "tied"):
            other.blocks[3 if change == "tied" else 1].fc2.weight.mul_(-1.0)
        elif change == "buffer":
            other.blocks[1].bn.running_mean.add_(1.0)
        else:
            other.blocks[1].lif.v_threshold = 0.25
    assert not torch.equal(alone(net, x), alone(other, x))
    for network in (net, net, other, other, net):
        batch = VariantBatch(networks=[network], stored=stored)
        with batch.evaluating():
            assert torch.equal(batch(x, data="x", batch=0)[0], alone(network, x))


class Shared(nn.Module):
    """A module that runs at every time step, and leaves something for another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.note = nn.Linear(5, 5), nn.Linear(5, 3), Note()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(3):
            y = self.note(self.a(y).sigmoid())
        return self.b(y) + self.note.last.sum()


class Note(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(5, 5), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.last + x.mean()
        return self.fc(x)


def test_modules_that_run_often_or_leave_something() -> None:
    net, x = Shared().eval(), torch.randn(4, 5)
    settle(net, (x,))
    wanted = alone(net, x)
    settle(net, (x,))
    other = copy.deepcopy(net)
    other.b.weight.data.mul_(2.0)
    stored = StoredOutputs(cache=ActivationCache(ceiling=10**7))
    for network in (net, other, net, other, net):
        batch = VariantBatch(networks=[network], stored=stored)
        with batch.evaluating():
            found = batch(x, data="x", batch=0)[0]
    assert torch.equal(found, wanted)
    assert stored.reused == 2 * 3, "both layers in the loop, not the module that leaves something"


def test_little_memory_changes_nothing_but_time() -> None:
    net, x = Net().eval(), torch.randn(6, 5)
    results: list[Any] = []
    for ceiling in (0, 1000, 10**7):
        stored = StoredOutputs(cache=ActivationCache(ceiling=ceiling))
        for kept in ([0], [0, 1], [0, 1, 2]):
            batch = VariantBatch(networks=[cut(net, "blocks.3.fc1", kept)], stored=stored)
            with batch.evaluating():
                results.append((len(kept), batch(x, data="x", batch=0)[0]))
        assert stored.cache.taken <= ceiling
    for count, found in results:
        assert all(torch.equal(found, other) for n, other in results if n == count)


class Reuse(nn.Module):
    """A block whose output may be stored, and a head that differs between networks."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.first, self.block = kind, nn.Linear(5, 5), Odd(kind)
        self.head, self.limit = nn.Linear(5, 3), -9.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "leaves a loop early":
            for _ in range(8):
                x = self.block(x).sigmoid()
                z = self.head(x)
                if z.max() > self.limit:
                    break
            return z
        y = self.block(x)
        if self.kind == "gives two views":
            y[1].relu_()
            return self.head(y[0])
        if self.kind == "gives its input":
            y.relu_()
        return self.head(x + y)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc, self.gain = kind, nn.Linear(5, 5), torch.tensor(2.0)
        self.more = {"shift": 1.0}

    def forward(self, x: Tensor) -> Any:
        if self.kind == "reads past operators":
            return x @ torch.tensor(self.fc.weight.tolist())
        y = self.fc(x) * self.gain + self.more["shift"]
        if self.kind == "writes to its input":
            return x.add_(y)
        if self.kind == "gives its input":
            return x
        return (y, y[:, :3]) if self.kind == "gives two views" else y


@pytest.mark.parametrize(
    "kind",
    [
        "writes to its input",
        "gives its input",
        "gives two views",
        "leaves a loop early",
        "reads past operators",
        "tensor as attribute",
        "dict as attribute",
    ],
)
def test_odd_modules_give_what_they_give_alone(kind: str) -> None:
    net, x = Reuse(kind).eval(), torch.randn(4, 5)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias.fill_(-10.0 if kind == "leaves a loop early" else 1.0)
        if kind == "reads past operators":
            other.block.fc.weight.mul_(-1.0)
        elif kind == "tensor as attribute":
            other.block.gain = torch.tensor(-3.0)
        elif kind == "dict as attribute":
            other.block.more["shift"] = 7.0
    stored = StoredOutputs(cache=ActivationCache(ceiling=10**7))
    for network in (net, other, net, other, net):
        batch = VariantBatch(networks=[network], stored=stored)
        with batch.evaluating():
            assert torch.equal(batch(x, data="x", batch=0)[0], alone(network, x))


class Cropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 2)
        self.crop = Crop()

    def forward(self, x: Tensor) -> Tensor:
        y = self.crop(x)
        assert y.stride() == (8 * 100, 100, 1, 20)
        return self.head(self.next(y).mean((2, 3)))


class Crop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :6, ::2].transpose(2, 3)


def test_outputs_lie_in_memory_as_they_did() -> None:
    """Operators round by how values lie, so what a copy would pack more densely is not stored."""
    net, x = Cropped().eval(), torch.randn(2, 3, 12, 12)
    other = copy.deepcopy(net)
    other.head.weight.data.mul_(2.0)
    stored = StoredOutputs(cache=ActivationCache(ceiling=10**7))
    for network in (net, other, net, other):
        batch = VariantBatch(networks=[network], stored=stored)
        with batch.evaluating():
            assert torch.equal(batch(x, data="x", batch=0)[0], alone(network, x))

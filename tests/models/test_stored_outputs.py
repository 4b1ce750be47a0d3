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

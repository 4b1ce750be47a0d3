"""State between forwards and random numbers in anybody's modules: found, put back, drawn alike."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from primesvt import Limits, prune, remove_channels, trace, verify
from primesvt.models import SpikingViT, create_model, lif
from primesvt.models.state import drawing_alike, reset, settle

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 4


class Keeps(nn.Module):
    """A neuron of one's own; ``keep`` says where its membrane is between forwards."""

    def __init__(self, keep: str = "attribute") -> None:
        super().__init__()
        self.keep = keep
        if keep == "buffer":
            self.register_buffer("mem", torch.zeros(1))
        elif keep == "list":
            self.all: list[Tensor] = []
        elif keep == "dictionary":
            self.all_by_name: dict[str, Tensor] = {}
        else:
            self.mem: Any = 0.0

    def before(self) -> Any:
        if self.keep == "list":
            return self.all[-1] if self.all else 0.0
        if self.keep == "dictionary":
            return self.all_by_name.get("mem", 0.0)
        return self.mem

    def forward(self, x: Tensor) -> Tensor:
        mem = self.before()
        if isinstance(mem, Tensor) and mem.shape != x.shape:
            mem = torch.zeros_like(x)
        mem = mem * 0.9 + x
        spikes = (mem >= 1.5).to(x.dtype)
        mem = mem * (1 - spikes)
        if self.keep == "list":
            self.all.append(mem)
        elif self.keep == "dictionary":
            self.all_by_name["mem"] = mem
        elif self.keep == "in place" and isinstance(self.mem, Tensor) and mem.shape == x.shape:
            self.mem.copy_(mem)
        else:
            self.mem = mem
        return spikes


class Net(nn.Module):
    """Convolution, neuron, classifier; ``steps`` time steps."""

    def __init__(self, neuron: nn.Module, before: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.neuron = nn.Conv2d(3, 8, 3, padding=1), neuron
        self.fc = nn.Linear(8 * 36, 4)
        self.enter = before or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.fc(self.neuron(self.conv(self.enter(x))).flatten(1)) for _ in range(3)]
        return torch.stack(steps).mean(0)


@pytest.mark.parametrize("keep", ["attribute", "buffer", "list", "dictionary", "in place"])
def test_what_a_module_keeps_is_found_and_put_back(keep: str) -> None:
    net = Net(Keeps(keep)).eval()
    with torch.no_grad():
        fresh = copy.deepcopy(net)(IMAGES)
    found = settle(net, (IMAGES,))
    name = {"list": "all", "dictionary": "all_by_name"}.get(keep, "mem")
    assert found.state == (f"neuron.{name}",) and found.repeatable and not found.draws
    for _ in range(3):
        with torch.no_grad():
            assert torch.equal(net(IMAGES), fresh)
        reset(net)
    twin = copy.deepcopy(net)  # a copy is put back as well, also on other images
    with torch.no_grad():
        other = twin(IMAGES[:2])
        reset(twin)
        assert torch.equal(twin(IMAGES[:2]), other)


def test_what_changes_no_answer_is_no_state() -> None:
    class Counts(nn.Module):
        calls, seen = 0, None

        def forward(self, x: Tensor) -> Tensor:
            self.calls, self.seen = self.calls + 1, x
            return x

    net = Net(Counts()).eval()
    assert settle(net, (IMAGES,)).state == ()
    assert net.neuron.seen is None  # and is put back all the same


def test_neurons_of_spikingjelly_need_nothing() -> None:
    net = Net(lif()).eval()
    assert settle(net, (IMAGES[:, None].expand(4, 1, 3, 6, 6).flatten(0, 1),)).state == ()
    assert not any("_primesvt" in name for module in net.modules() for name in vars(module))


def test_methods_that_reset_are_called_and_weights_stay() -> None:
    class Forgets(Keeps):
        def reset_mem(self) -> None:
            self.mem = 0.0

    class Restarts(nn.Linear):
        def reset(self) -> None:
            nn.init.zeros_(self.weight)

    net = Net(Forgets()).eval()
    with torch.no_grad():
        fresh = net(IMAGES)  # leaves a membrane behind
        settle(net, (IMAGES,))
        assert torch.equal(net(IMAGES), fresh)
    layer = Restarts(3, 2)
    before = layer.weight.clone()
    settle(layer, (torch.ones(1, 3),))
    assert torch.equal(layer.weight, before)


def test_a_used_network_that_cannot_be_reset_is_refused() -> None:
    net = Net(Keeps()).eval()
    net(IMAGES)
    data = TensorDataset(IMAGES, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"module 'neuron' \(Keeps\) still holds 'mem' of an ear"):
        prune(net, data=data, constraints=Limits(max_accuracy_drop=50))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda x: (torch.rand_like(x) < x / 4).to(x.dtype),
    "numpy": lambda x: x + float(np.random.rand()),  # noqa: NPY002
    "python": lambda x: x + random.random(),
}


@pytest.mark.parametrize("source", DRAWS)
def test_random_numbers_are_found_and_drawn_alike(source: str) -> None:
    net = Net(Keeps(), DRAWS[source]).eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    assert settle(net, (IMAGES,)).draws
    with torch.no_grad():
        answers = []
        for number in (0, 0, 1):
            reset(net)
            with drawing_alike(net, number):
                answers.append(net(IMAGES))
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def labelled(net: nn.Module, count: int = 200) -> TensorDataset:
    x = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(3)) * 4
    twin = copy.deepcopy(net)
    settle(twin, (x[:2],))
    with torch.no_grad():
        answers = []
        for number, part in enumerate(x.split(40)):
            reset(twin)
            with drawing_alike(twin, number):
                answers.append(twin(part).argmax(1))
    return TensorDataset(x, torch.cat(answers))


ASKED = {
    "policy": "uniform",
    "rates": [0.25],
    "batch_size": 40,
    "constraints": Limits(max_accuracy_drop=60),
    "gate": "point",
    "lossless": False,
}


@pytest.mark.parametrize("check", [True, False])
def test_accuracy_is_that_of_a_network_at_rest(check: bool) -> None:
    net = Net(Keeps()).eval()
    result = prune(net, data=labelled(net), verify=check, **ASKED)
    assert result.metrics.before.test.accuracy == 1.0
    assert any("put back before every batch: neuron.mem" in each for each in result.metrics.notes)
    assert result.refusals == () and net.neuron.mem == 0.0


def test_a_score_is_taken_at_rest_too() -> None:
    net = Net(Keeps()).eval()
    images, labels = labelled(net).tensors

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(images[:40]).argmax(1) == labels[:40]).float().mean())

    asked = ASKED | {"constraints": Limits(max_accuracy_drop=0.6)}
    assert prune(net, score=score, **asked).metrics.before.score == 1.0


def test_a_forward_that_draws_is_checked_with_the_same_draws() -> None:
    """Random numbers as wide as the channels are cut like them."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return self.c((self.b(x * torch.rand(x.shape))).relu())  # type: ignore[no-any-return]

    net, x = Noisy().eval(), torch.randn(2, 4)
    assert verify(net, trace(net, x)) == []


def test_a_forward_that_never_repeats_is_refused_as_such() -> None:
    own = torch.Generator().manual_seed(0)

    class Drifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu() + torch.rand(1, generator=own))  # type: ignore[no-any-return]

    net = Drifts().eval()
    graph = trace(net, torch.randn(2, 4))
    with pytest.raises(ValueError, match="two forwards of Drifts on the same input differ"):
        verify(net, graph)
    with pytest.raises(ValueError, match="two forwards of Drifts on the same input differ"):
        prune(net, score=lambda _: 0.5, example_input=torch.randn(2, 4), **ASKED)


def test_a_forward_that_fails_says_on_what() -> None:
    with pytest.raises(ValueError, match=r"the forward of Net fails on an input of shape \[2, 5\]"):
        settle(Net(Keeps()).eval(), (torch.zeros(2, 5),))


@dataclass
class Held:
    mem: Any = 0.0
    steps: int = 0


class KeepsElsewhere(Keeps):
    """Its membrane lies in an object, which a second module holds as well."""

    def __init__(self, where: Any) -> None:
        super().__init__()
        del self.mem
        self.where = where
        self.other = nn.Identity()
        self.other.same = where

    def forward(self, x: Tensor) -> Tensor:
        held = self.where["a"][0] if isinstance(self.where, dict) else self.where
        if isinstance(held.mem, Tensor) and held.mem.shape != x.shape:
            held.mem = 0.0
        self.mem = held.mem * 0.9 + x
        spikes = (self.mem >= 1.5).to(x.dtype)
        held.mem, held.steps = self.mem * (1 - spikes), held.steps + 1
        return spikes


class DrawsAlone(nn.Module):
    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        own = self.generator
        if isinstance(own, torch.Generator):
            return x + torch.rand(1, generator=own)
        return x + float(own.random())


class Counts(base.MemoryModule):
    """A neuron on SpikingJelly's base class that counts in an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("v", 0.0)
        self.count = np.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * float(np.cos(self.count[0]))


ELSEWHERE: dict[str, Callable[[], nn.Module]] = {
    "object": lambda: KeepsElsewhere(SimpleNamespace(mem=0.0, steps=0)),
    "data class": lambda: KeepsElsewhere(Held()),
    "nested": lambda: KeepsElsewhere({"a": [Held()]}),
    "torch's generator": lambda: DrawsAlone(torch.Generator().manual_seed(3)),
    "numpy's generator": lambda: DrawsAlone(np.random.default_rng(3)),
    "Python's generator": lambda: DrawsAlone(random.Random(3)),
    "subclass of SpikingJelly's": Counts,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_state_in_any_object_is_put_back(name: str) -> None:
    net = Net(ELSEWHERE[name]()).eval()
    with torch.no_grad():
        fresh = Net(ELSEWHERE[name]()).eval()(IMAGES)
        found = settle(net, (IMAGES,))
        assert found.state and found.repeatable
        for _ in range(2):
            assert torch.equal(net(IMAGES), fresh)
            reset(net)
    if isinstance(net.neuron, KeepsElsewhere):
        assert net.neuron.other.same is net.neuron.where


def test_methods_that_reset_touch_only_what_a_forward_changes() -> None:
    class Restarts(Keeps):
        def __init__(self) -> None:
            super().__init__()
            self.gain = 2.0
            self.register_buffer("scale", torch.ones(8, 1, 1))

        def reset(self) -> None:
            self.mem, self.gain = 0.0, 0.0
            self.scale.zero_()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.gain * self.scale)

    net = Net(Restarts()).eval()
    with torch.no_grad():
        fresh = net(IMAGES)  # leaves a membrane behind
        settle(net, (IMAGES,))
        assert torch.equal(net(IMAGES), fresh)
    assert net.neuron.gain == 2.0 and bool(net.neuron.scale.all())


class Wide(nn.Module):
    """A membrane that is a buffer as wide as the channels, and not zero at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.mem = self.mem * 0.9 + x.sigmoid()
        return self.mem


def test_state_as_wide_as_the_channels_is_cut_with_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Wide(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    settle(net, (IMAGES,))
    graph = trace(net, IMAGES)
    assert [g.name for g in graph.prunable()] == ["0"] and verify(net, graph) == []
    rest = net[1].mem.clone()
    remove_channels(net, graph, {"0": [1, 4, 6]})
    with torch.no_grad():
        first = net(IMAGES)
        reset(net)
        assert torch.equal(net(IMAGES), first)
    reset(net)
    assert torch.equal(net[1].mem, rest[:, [1, 4, 6]])


def test_potentials_and_random_states_of_the_user_stay() -> None:
    net = Net(neuron.LIFNode()).eval()
    data = labelled(net, 80)
    with torch.no_grad():
        net(IMAGES)
    kept = net.neuron.v
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    prune(net, data=data, **ASKED)
    assert net.neuron.v is kept and bool(kept.any())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]  # noqa: NPY002


def test_a_users_subclass_of_our_models_is_looked_at_too() -> None:
    class Mine(SpikingViT):
        def forward(self, x: Tensor) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x) * self.calls

    ours = create_model("sdt_v2_digits", pretrained=True).eval()
    ours.__class__ = Mine
    assert settle(ours, (torch.rand(2, 1, 8, 8),)).state == ("calls",)
    assert settle(create_model("sdt_v2_digits").eval(), (torch.rand(2, 1, 8, 8),)).state == ()

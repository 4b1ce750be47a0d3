"""How times are taken; what they come to decides no test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from primesvt.profiling.timing import (
    Pace,
    batched,
    device_of,
    latency_of,
    machine_of,
    measure,
    race,
)

CPU = torch.device("cpu")
QUICK = Pace(seconds=0, least=3, tick=0)


class Watched(nn.Module):
    """Says when it ran, and on what."""

    def __init__(self, name: str, log: list[tuple[str, int, bool, bool]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.lif = neuron.LIFNode()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fresh = isinstance(self.lif.v, float)
        self.log.append((self.name, len(x), self.training, torch.is_grad_enabled()))
        assert fresh, "a membrane was left from the run before"
        return self.lif(self.fc(x))


def test_networks_run_in_turn_and_are_left_as_they_were():
    log: list[tuple[str, int, bool, bool]] = []
    one, two = Watched("one", log).train(), Watched("two", log).eval()
    found = measure({"one": one, "two": two}, (torch.rand(2, 3),), batches=(1, 5), pace=QUICK)
    assert [each.batch for each in found["one"]] == [1, 5]
    assert {size for _, size, *_ in log} == {1, 5}
    assert not any(training or grad for *_, training, grad in log)
    assert one.training and not two.training
    assert one.lif.v == two.lif.v == 0.0
    timed = [name for name, size, *_ in log if size == 1][6:]  # after three runs each to warm up
    assert timed == ["two", "one", "one", "two", "two", "one"]


def test_quartiles_of_the_runs():
    found = latency_of(np.array([4, 1, 2, 3, 5]) / 1e3, 32, CPU)
    assert (found.low, found.milliseconds, found.high) == (2, 3, 4)
    assert (found.runs, found.batch, found.threads) == (5, 32, torch.get_num_threads())
    assert found.machine == machine_of(CPU) != ""


def test_rounds_end_with_the_time_or_with_the_most():
    clock = itertools.count()
    runs = {"a": lambda: next(clock)}
    assert len(race(runs, Pace(seconds=1e9, least=2, most=4, tick=0), CPU)["a"]) == 4
    assert len(race(runs, Pace(seconds=0, least=2, most=4, tick=0), CPU)["a"]) == 2


def test_inputs_of_any_batch_size():
    frames, scalar = torch.arange(6).reshape(3, 2), torch.tensor(7)
    grown = batched((frames, {"scale": scalar}), 4)
    assert torch.equal(grown[0], torch.tensor([[0, 1], [2, 3], [4, 5], [0, 1]]))
    assert grown[1]["scale"] == 7
    with pytest.raises(ValueError, match="batch size is 0"):
        batched((frames,), 0)


def test_a_network_without_parameters_is_on_the_cpu():
    assert device_of(nn.ReLU()) == CPU

"""Time forward passes of several networks in turn, so that all meet the same load."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from primesvt.models import reset
from primesvt.models.forward import evaluating

__all__ = [
    "BATCHES",
    "Latency",
    "Pace",
    "batched",
    "device_of",
    "latency_of",
    "machine_of",
    "measure",
    "placed",
    "race",
    "race_networks",
    "steady_clock",
]

BATCHES = (1, 32)
Seconds = npt.NDArray[np.float64]
Forward = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        batch: samples in it.
        milliseconds: median over all runs.
        low, high: first and third quartile.
        runs: how many, taken in turn with those of the other networks compared.
        threads: of PyTorch on a CPU.
        machine: where it was measured.
    """

    batch: int
    milliseconds: float
    low: float
    high: float
    runs: int
    threads: int
    machine: str


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to measure; in every round, each of the networks compared runs once.

    Attributes:
        seconds: for all of it; reached or not, ``least`` rounds are run.
        least, most: rounds.
        tick: seconds that one timing takes at least, of several passes where one is shorter.
        clock: seconds that have passed.
    """

    seconds: float = 3.0
    least: int = 7
    most: int = 100
    tick: float = 0.002
    clock: Clock = time.perf_counter


def race(forwards: Mapping[str, Forward], pace: Pace, device: torch.device) -> dict[str, Seconds]:
    """Time several forward passes in turn; the order is reversed from round to round.

    Example:
        >>> times = race({"a": lambda: 1, "b": lambda: 2}, Pace(seconds=0), torch.device("cpu"))
        >>> len(times["a"]) == len(times["b"]) == Pace().least
        True
    """
    names = list(forwards)
    repeats = {name: _repeats(forwards[name], pace, device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begin, rounds = time.perf_counter(), 0
    while rounds < pace.least or (
        rounds < pace.most and time.perf_counter() - begin < pace.seconds
    ):
        for name in names if rounds % 2 else names[::-1]:
            seconds[name].append(_timed(forwards[name], repeats[name], device, pace.clock))
        rounds += 1
    return {name: np.array(values) for name, values in seconds.items()}


def measure(
    models: Mapping[str, nn.Module],
    inputs: tuple[Any, ...],
    *,
    batches: Sequence[int] = BATCHES,
    pace: Pace | None = None,
) -> dict[str, tuple[Latency, ...]]:
    """Measure latencies of networks in turn, at every batch size.

    Networks run in evaluation mode without gradients, on the device where they are.

    Args:
        models: by name.
        inputs: as the models take them; repeated or shortened to each batch size.
        batches: samples per forward pass.
        pace: how long to measure every batch size.

    Raises:
        ValueError: a batch size below 1.

    Example:
        >>> found = measure({"net": nn.Linear(4, 2)}, (torch.rand(2, 4),), pace=Pace(seconds=0))
        >>> [latency.batch for latency in found["net"]]
        [1, 32]
    """
    found: dict[str, tuple[Latency, ...]] = dict.fromkeys(models, ())
    for batch in batches:
        sized = batched(inputs, batch)
        parts = {name: (model, sized) for name, model in models.items()}
        times = race_networks(parts, pace or Pace())
        for name, seconds in times.items():
            found[name] += (latency_of(seconds, batch, device_of(models[name])),)
    return found


def race_networks(
    parts: Mapping[str, tuple[nn.Module, tuple[Any, ...]]], pace: Pace
) -> dict[str, Seconds]:
    """Time several networks, or parts of them, in turn: the seconds of each in every round.

    All run in evaluation mode without gradients, with fresh neurons.
    """
    device = device_of(next(iter(parts.values()))[0])
    forwards = {name: _forward(model, placed(x, device)) for name, (model, x) in parts.items()}
    models = [model for model, _ in parts.values()]
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        times = race(forwards, pace, device)
    for model in models:
        reset(model)
    return times


def placed(inputs: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """Move inputs to a device."""
    moved: tuple[Any, ...] = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
    return moved


def steady_clock(device: torch.device) -> tuple[str, Clock]:
    """The clock that other load on the machine affects least, and its name.

    Where one thread computes that is its own processor time: what a pass takes on a quiet machine.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "processor", time.thread_time
    return "wall", time.perf_counter


def latency_of(seconds: Seconds, batch: int, device: torch.device) -> Latency:
    """Median and quartiles of the timings of one network.

    Example:
        >>> latency_of(np.array([0.002, 0.001, 0.003]), 32, torch.device("cpu")).milliseconds
        2.0
    """
    low, middle, high = (1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return Latency(
        batch=batch,
        milliseconds=middle,
        low=low,
        high=high,
        runs=len(seconds),
        threads=torch.get_num_threads(),
        machine=machine_of(device),
    )


def batched(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Inputs repeated or shortened to a batch size.

    Example:
        >>> batched((torch.arange(3),), 5)[0].tolist()
        [0, 1, 2, 0, 1]
    """
    if size < 1:
        raise ValueError(f"the batch size is {size}, but must be at least 1")
    sized: tuple[Any, ...] = tree_map_only(Tensor, lambda tensor: _sized(tensor, size), inputs)
    return sized


def _sized(tensor: Tensor, size: int) -> Tensor:
    if tensor.ndim == 0 or len(tensor) == 0:
        return tensor
    places = torch.arange(size, device=tensor.device) % len(tensor)
    return tensor[places]


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's parameters; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def machine_of(device: torch.device) -> str:
    """The name of the processor or GPU that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _forward(model: nn.Module, inputs: tuple[Any, ...]) -> Forward:
    def forward() -> Any:
        reset(model)
        return model(*inputs)

    return forward


def _repeats(forward: Forward, pace: Pace, device: torch.device) -> int:
    """Passes per timing; the first two are warm-up."""
    _timed(forward, 1, device, pace.clock)
    once = min(_timed(forward, 1, device, pace.clock) for _ in range(2))
    return max(1, round(pace.tick / max(once, 1e-7)))


def _timed(forward: Forward, repeats: int, device: torch.device, clock: Clock) -> float:
    """Seconds of one pass, the mean of several in a row."""
    _wait(device)
    begin = clock()
    for _ in range(repeats):
        forward()
    _wait(device)
    return (clock() - begin) / repeats


def _wait(device: torch.device) -> None:
    """Wait until an accelerator has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

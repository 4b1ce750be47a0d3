"""Threads that play processes: they meet in memory, and nothing is launched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from primesvt.distributed import ProcessGroup

Value = TypeVar("Value")
STUCK = 60.0  # seconds after which threads that wait for one another for ever give up


class Meeting:
    """Where all bring a value and leave with those of all; ``held`` counts meetings."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=STUCK)
        self.said: list[Any] = [None] * size
        self.held = 0

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.said[rank] = value
        self.barrier.wait()
        found = list(self.said)
        self.held += rank == 0
        self.barrier.wait()
        return found


@dataclass(frozen=True, kw_only=True)
class Played(ProcessGroup):
    """One of several threads, in place of a process."""

    meeting: Meeting = field(compare=False, repr=False)

    def gather(self, value: Value) -> list[Value]:
        return self.meeting.gather(self.rank, value)

    def broadcast(self, value: Value) -> Value:
        return self.gather(value)[0]


def play(size: int, work: Callable[[Played], Value]) -> list[Value]:
    """What ``work`` gives each of several threads; the first error of its own is raised."""
    meeting = Meeting(size)

    def run(rank: int) -> Value:
        try:
            cpu = torch.device("cpu")
            return work(Played(device=cpu, rank=rank, size=size, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        running = [pool.submit(run, rank) for rank in range(size)]
    errors = [each.exception() for each in running]
    own = [e for e in errors if e is not None and not isinstance(e, threading.BrokenBarrierError)]
    for error in own or [e for e in errors if e is not None]:
        raise error
    return [each.result() for each in running]

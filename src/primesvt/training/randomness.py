"""Seeds, threads and random states of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from primesvt.distributed import Processes

__all__ = ["random_states", "repeatable", "restore_random_states"]


@contextlib.contextmanager
def repeatable(seed: int, threads: int | None, device: torch.device) -> Iterator[None]:
    """Seed and thread count for the time of a training; the caller's are put back.

    Example:
        >>> with repeatable(0, 1, torch.device("cpu")):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def random_states(processes: Processes) -> dict[str, Tensor]:
    """The states of torch's own generators, ``cpu.RANK`` and ``cuda.RANK``, of all processes."""
    here = {"cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        here["cuda"] = torch.cuda.get_rng_state(processes.device)
    everywhere = processes.gather(here)
    return {
        f"{kind}.{rank}": s for rank, found in enumerate(everywhere) for kind, s in found.items()
    }


def restore_random_states(states: Mapping[str, Tensor], processes: Processes) -> None:
    """Put back this process's states; one that was not there then keeps what it has."""
    if f"cpu.{processes.rank}" in states:
        torch.set_rng_state(states[f"cpu.{processes.rank}"])
    if f"cuda.{processes.rank}" in states:
        torch.cuda.set_rng_state(states[f"cuda.{processes.rank}"], processes.device)

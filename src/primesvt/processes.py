"""Several processes at one job: who takes which samples, how results come together, who writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

__all__ = ["Processes"]

Value = TypeVar("Value")
Measure = Callable[[Dataset[Any]], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that ``torchrun`` or ``accelerate launch`` started; else alone.

    All of them run the same program in lockstep: every method that speaks of others must be called
    by all. Only ``main`` writes and prints.

    Attributes:
        rank: the number of this process.
        size: how many there are.
        device: where this one computes.

    Example:
        >>> Processes.start(torch.device("cpu")).main
        True
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    _accelerator: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def start(cls, device: torch.device) -> Processes:
        """Join the others: gloo for ``cpu``, NCCL for ``cuda``, one GPU for each process.

        Raises ``ValueError`` where several processes cannot have a GPU each.
        """
        if not _several():
            return cls(device=device)
        if device.type == "cuda":
            _check_gpus(device)
        accelerator = _accelerator(cpu=device.type == "cpu")
        return cls(
            device=device if device.type == "cpu" else accelerator.device,
            rank=accelerator.process_index,
            size=accelerator.num_processes,
            _accelerator=accelerator,
        )

    @staticmethod
    def take_gpu() -> None:
        """Of several processes, each makes a GPU of its own the current one.

        To be called before anything else touches a GPU, or all take memory of the first.
        """
        if _several() and _local() < torch.cuda.device_count():
            torch.cuda.set_device(_local())

    @property
    def main(self) -> bool:
        """This is the process that writes."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """What each process gets of a batch; ``ValueError`` where it cannot be shared evenly."""
        if batch_size % self.size:
            raise ValueError(
                f"batch_size is {batch_size}, but {self.size} processes share it evenly; "
                f"give a multiple of {self.size}"
            )
        return batch_size // self.size

    def outcomes(
        self, dataset: Dataset[Any], batch_size: int, measure: Measure
    ) -> npt.NDArray[Any]:
        """Per-sample outcomes in the order of the data set, measured by all processes together.

        Whole batches are dealt out in turn, and no sample is doubled to fill one up: each batch is
        the one that a single process forms, also where the images of a batch influence each other.

        Args:
            dataset: all samples.
            batch_size: samples per forward pass of one process.
            measure: outcomes of a data set, in batches of that size.

        Example:
            >>> alone = Processes(device=torch.device("cpu"))
            >>> alone.outcomes(range(3), 2, lambda part: np.array([i > 0 for i in part])).tolist()
            [False, True, True]
        """
        if self.size == 1:
            return measure(dataset)
        total = len(cast(Sized, dataset))
        places = [self._dealt(total, batch_size, rank) for rank in range(self.size)]
        mine = places[self.rank]
        found = measure(Subset(dataset, mine.tolist())) if len(mine) else None
        parts = self.gather(found)
        whole = np.empty(total, dtype=next(part.dtype for part in parts if part is not None))
        for where, part in zip(places, parts, strict=True):
            if part is not None:
                whole[where] = part
        return whole

    def _dealt(self, total: int, batch_size: int, rank: int) -> npt.NDArray[np.int64]:
        """The samples of every batch whose number falls to a process."""
        return np.flatnonzero(np.arange(total) // batch_size % self.size == rank)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, for each of them."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def agree(self, value: Value) -> Value:
        """The value of the main process, for all."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return cast(Value, broadcast_object_list([value])[0])

    def on_main(self, work: Callable[[], Value]) -> Value:
        """What ``work`` gives on the main process, for all; a ``ValueError`` is raised by all."""
        found: Value | None = None
        problem: str | None = None
        if self.main:
            try:
                found = work()
            except ValueError as error:
                if self.size == 1:
                    raise
                problem = str(error)
        found, problem = self.agree((found, problem))
        if problem is not None:
            raise ValueError(problem)
        return cast(Value, found)

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes."""
        if self.size > 1:
            value = self._accelerator.reduce(value.detach(), reduction="mean")
        return value.item()

    def wrap(self, model: nn.Module) -> nn.Module:
        """A model to train with: gradients are averaged over all processes."""
        return model if self.size == 1 else self._accelerator.prepare_model(model)

    def align(self, model: nn.Module) -> None:
        """Give every process the buffers of the main one, such as batch-norm statistics."""
        if self.size > 1:
            from accelerate.utils import broadcast

            with torch.no_grad():
                for buffer in model.buffers():
                    buffer.copy_(broadcast(buffer.clone()))

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, averaged over all processes."""
        if self.size == 1:
            loss.backward()
        else:
            self._accelerator.backward(loss)

    def clip(self, model: nn.Module, limit: float) -> None:
        """Shorten the gradient of a model to a norm of at most ``limit``."""
        if self.size == 1:
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        else:
            self._accelerator.clip_grad_norm_(model.parameters(), limit)


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _local() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _check_gpus(device: torch.device) -> None:
    if device.index is not None:
        raise ValueError(
            f"{device} was asked for, but each of several processes takes a GPU of its own; "
            f"give {device.type}"
        )
    if _local() >= torch.cuda.device_count():
        raise ValueError(
            f"this machine has {torch.cuda.device_count()} GPU(s), too few for a process each; "
            "start fewer (--nproc-per-node)"
        )


def _accelerator(*, cpu: bool) -> Any:
    """Hugging Face Accelerate, for several processes; it places nothing and casts nothing."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A static graph may have parameters that no forward reads, as some official networks do.
    handlers = [DistributedDataParallelKwargs(static_graph=True)]
    return Accelerator(
        cpu=cpu, mixed_precision="no", device_placement=False, kwargs_handlers=handlers
    )

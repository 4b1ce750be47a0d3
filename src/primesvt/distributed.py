"""Several processes at one job: sharding of samples, gathering of results, and one that writes."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from primesvt._files import FolderInUse, folder_lock

__all__ = ["SINGLE_PROCESS", "ProcessGroup", "interleave", "resolve_device"]


def resolve_device(
    device: str | torch.device | None, model: nn.Module | None = None
) -> torch.device:
    """Resolve the name of a device, or take the model's own; ``ValueError`` if there is none such.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    first = next(model.parameters(), None) if model is not None else None
    if device is None and first is not None and first.is_meta:
        raise ValueError("the model is on the meta device, without weights; load weights first")
    if device is None:
        return first.device if first is not None else torch.device("cpu")
    try:
        place = torch.device(device)
        if place.type == "meta" or (place.type == "cpu" and place.index):
            raise RuntimeError("nothing can be computed there")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"there is no device {str(device)!r} here; use cpu, or cuda on a machine with a GPU"
        ) from error
    return place


Item = TypeVar("Item")
Value = TypeVar("Value")
LEAVE = 0.5  # seconds in which threads come to an end


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes that ``torchrun`` or ``accelerate launch`` started, as seen from one of them.

    All of them run the same program in lockstep: every method that exchanges something must be
    called by all. Only ``main`` writes and prints.

    Attributes:
        rank: the number of this process.
        size: how many there are.
        device: where this one computes.

    Example:
        >>> ProcessGroup.start(torch.device("cpu")).main
        True
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    _accelerator: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def start(cls, device: torch.device) -> ProcessGroup:
        """Set up communication: gloo for ``cpu``, NCCL for ``cuda``, one GPU for each process.

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
        """Select a GPU of its own for each of several processes.

        To be called before anything else touches a GPU, or all take memory of the first.
        """
        if _several() and _local() < torch.cuda.device_count():
            torch.cuda.set_device(_local())

    @property
    def main(self) -> bool:
        """Whether this is the main process, the only one that writes and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Samples of a batch per process; ``ValueError`` where they cannot be shared evenly."""
        if batch_size % self.size:
            raise ValueError(
                f"batch_size is {batch_size}, but {self.size} processes share it evenly; "
                f"give a multiple of {self.size}"
            )
        return batch_size // self.size

    def part_of(self, dataset: Dataset[Any], batch_size: int) -> Dataset[Any]:
        """The part of a data set for this process: its batches are distributed in turn.

        No sample is doubled to fill a batch up: each is the one that a single process forms, also
        where the images of a batch influence each other.
        """
        if self.size == 1:
            return dataset
        number = np.arange(len(cast(Sized, dataset))) // batch_size
        return Subset(dataset, np.flatnonzero(number % self.size == self.rank).tolist())

    def gather(self, value: Value) -> list[Value]:
        """Gather a value from all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        with _exchange():
            return list(gather_object([value]))

    def gather_calls(self, work: Callable[[], Value]) -> list[Value]:
        """Call ``work`` on all processes and gather the results; an error of one is raised by all.

        Mistakes are ``ValueError`` and ``OSError``; of any other error one process dies, and its
        launcher ends the others.
        """
        if self.size == 1:
            return [work()]
        found: Value | None = None
        problem: str | None = None
        try:
            found = work()
        except (ValueError, OSError) as error:
            problem = str(error)
        parts = self.gather((found, problem))
        for _, each in parts:
            if each is not None:
                raise ValueError(each)
        return [cast(Value, part) for part, _ in parts]

    def map_sharded(self, items: Sequence[Item], work: Callable[[Item], Value]) -> list[Value]:
        """Call ``work`` for every item, each on one process, and gather the results in order.

        Example:
            >>> SINGLE_PROCESS.map_sharded([1, 2, 3], lambda number: 10 * number)
            [10, 20, 30]
        """
        return interleave(self.gather_calls(lambda: [work(item) for item in self.shard(items)]))

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """The items for this process, where items are distributed in turn."""
        return list(items[self.rank :: self.size])

    def broadcast(self, value: Value) -> Value:
        """Send the main process's value to all."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _exchange():
            return cast(Value, broadcast_object_list([value])[0])

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Call ``work`` on the main process, and return or raise its outcome on all."""
        if self.size == 1:
            return work()
        found: Value | None = None
        problem: ValueError | None = None
        if self.main:
            try:
                found = work()
            except FolderInUse as error:
                problem = error
            except (ValueError, OSError) as error:
                problem = ValueError(str(error))
        found, problem = self.broadcast((found, problem))
        if problem is not None:
            raise problem
        return cast(Value, found)

    @contextmanager
    def locked(self, folder: str | Path) -> Iterator[None]:
        """Lock a folder for this job, as ``folder_lock`` does; the main process holds the lock."""
        with ExitStack() as stack:
            self.on_main(lambda: stack.enter_context(folder_lock(folder)))
            yield

    def check_same(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Raise ``ValueError``, on all, where a process has other settings than the main one.

        Processes with different settings would wait for one another in different places.
        """
        if self.size == 1:
            return
        mine = dict(facts())
        theirs = self.broadcast(mine)
        other = next((name for name in mine if mine[name] != theirs.get(name)), None)
        for rank, name in enumerate(self.gather(other)):
            if name is not None:
                raise ValueError(
                    f"process {rank} differs from process 0 in {name.replace('_', ' ')}; give all "
                    "of them the same model, data and settings"
                )

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes, without its gradient."""
        value = value.detach()
        if self.size > 1:
            with _exchange():
                value = self._accelerator.reduce(value, reduction="mean")
        return value

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model for training, so that gradients are averaged over all processes."""
        return model if self.size == 1 else self._accelerator.prepare_model(model)

    def broadcast_state(self, model: nn.Module, *, parameters: bool = False) -> None:
        """Copy the main process's buffers, such as batch-norm statistics, to all processes.

        With ``parameters`` these too, for networks that were not trained together.
        """
        if self.size > 1:
            from accelerate.utils import broadcast

            with torch.no_grad(), _exchange():
                for tensor in (*model.buffers(), *(model.parameters() if parameters else ())):
                    tensor.copy_(broadcast(tensor.detach().clone()))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, averaged over all processes."""
        if self.size == 1:
            loss.backward()
        else:
            with _exchange():
                self._accelerator.backward(loss)

    def clip(self, model: nn.Module, limit: float) -> None:
        """Clip the gradient of a model to a norm of at most ``limit``."""
        if self.size == 1:
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        else:
            self._accelerator.clip_grad_norm_(model.parameters(), limit)


def interleave(parts: Iterable[Sequence[Value]]) -> list[Value]:
    """Merge parts by taking one item of each in turn, which undoes a distribution in turn.

    Example:
        >>> interleave([[0, 3], [1, 4], [2]])
        [0, 1, 2, 3, 4]
    """
    missing = object()
    rounds = zip_longest(*parts, fillvalue=missing)
    return [cast(Value, item) for each in rounds for item in each if item is not missing]


@contextmanager
def _exchange() -> Iterator[None]:
    """Turn the error by which gloo or NCCL tells of a lost process into one line."""
    try:
        yield
    except RuntimeError as error:
        gone = any(sign in str(error) for sign in _GONE)
        if not (gone or isinstance(error, torch.distributed.DistError)):
            raise
        raise ValueError(
            "another process of this run has ended, and none can go on without it: see what it "
            "said, and start all of them again; a run folder goes on where it was stopped"
        ) from error


# How gloo says that nobody answers any more.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


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

    atexit.register(_leave)
    # A static graph may have parameters that no forward reads, as some official networks do.
    handlers = [DistributedDataParallelKwargs(static_graph=True)]
    return Accelerator(
        cpu=cpu, mixed_precision="no", device_placement=False, kwargs_handlers=handlers
    )


def _leave() -> None:
    """Leave the process group before Python ends.

    Threads of gloo give back the tensors of their last message, and one that still waits for the
    interpreter when that ends aborts the process.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        time.sleep(LEAVE)
        torch.distributed.destroy_process_group()


# The group of a process that was started alone; nothing is computed on its device.
SINGLE_PROCESS = ProcessGroup(device=torch.device("cpu"))

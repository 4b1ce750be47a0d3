"""Evaluation by several processes, which exchange the outcomes of their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from primesvt.data import check_labels
from primesvt.data.splits import check_finite, sample_name
from primesvt.distributed import ProcessGroup, interleave
from primesvt.models.shared_prefix import VariantBatch

__all__ = ["ShardedEvaluation", "StopEarly"]

Right = npt.NDArray[np.bool_]
StopEarly = Callable[[int, Right], bool]


@dataclass(kw_only=True)
class ShardedEvaluation:
    """Evaluation of networks on a data set whose batches are distributed over processes.

    Of ``n`` processes number ``r`` answers batches ``r``, ``r + n`` and so on, and every batch is
    the one that a single process forms. With ``leaves``, outcomes are exchanged after every round
    of batches and handed to it in the order of the batches; those of a network after the batch at
    which it was stopped do not count. So the outcomes are those of one process. Without ``leaves``
    they are exchanged once, at the end.

    Args:
        variants: the networks.
        dataset: pairs of a tensor and a label.
        device: where this process computes.
        batch_size: samples per forward pass.
        processes: those that take part.
        workers: processes that load samples.
        leaves: called with a network's number and its outcomes on a batch; whether to stop it.
        data: names the data set where activations may be kept.
        tell: called with the number of samples done.
    """

    variants: VariantBatch
    dataset: Dataset[Any]
    device: torch.device
    batch_size: int
    processes: ProcessGroup
    workers: int = 0
    leaves: StopEarly | None = None
    data: Hashable = None
    tell: Callable[[int], None] = lambda _: None
    _found: list[list[Right]] = field(init=False, repr=False)
    _running: list[int] = field(init=False, repr=False)

    def run(self) -> list[Right]:
        """Evaluate: for every network, which samples it gets right, up to where it was stopped."""
        self._found = [[] for _ in self.variants.networks]
        self._running = list(range(len(self._found)))
        rounds = math.ceil(self._total / (self.batch_size * self.processes.size))
        step = rounds if self.leaves is None else 1
        batches = self._batches()
        with self.variants.evaluating():
            for first in range(0, rounds, step):
                numbers = range(first, min(first + step, rounds))
                for right in interleave(self._answered(batches, numbers)):
                    for network in self._running:
                        self._found[network].append(right[network])
                    if self.leaves is not None:
                        self._running = [n for n in self._running if not self.leaves(n, right[n])]
                if self.leaves is not None:
                    self._report(numbers.stop)
                if not self._running:
                    break
        return [np.concatenate(right) for right in self._found]

    def _answered(self, batches: Iterator[Any], rounds: range) -> list[list[dict[int, Right]]]:
        """Outcomes of all processes in some rounds: network -> which samples it gets right."""

        def mine() -> list[dict[int, Right]]:
            answers = []
            for number in rounds:
                batch = next(batches, None)
                if batch is not None:
                    answers.append(self._answer(batch, number))
                if self.leaves is None:
                    self._report(number + 1)
            return answers

        return self.processes.gather_calls(mine)

    def _answer(self, samples: tuple[Tensor, Tensor], number: int) -> dict[int, Right]:
        images, labels = samples
        batch = number * self.processes.size + self.processes.rank
        if images.is_floating_point() and not bool(images.isfinite().all()):
            first = batch * self.batch_size
            check_finite(images, [sample_name(self.dataset, first + k) for k in range(len(images))])
        networks = self.variants.only(self._running)
        answers = networks(images.to(self.device), data=self.data, batch=batch)
        pairs = zip(self._running, answers, strict=True)
        return {network: _correct(logits, labels) for network, logits in pairs}

    def _batches(self) -> Iterator[Any]:
        """The batches of this process."""
        mine = self.processes.part_of(self.dataset, self.batch_size)
        if not len(cast(Sized, mine)):
            return iter(())
        loader = DataLoader(
            mine, batch_size=self.batch_size, shuffle=False, num_workers=self.workers
        )
        return iter(loader)

    @property
    def _total(self) -> int:
        return len(cast(Sized, self.dataset))

    def _report(self, rounds: int) -> None:
        done = rounds * self.batch_size * self.processes.size
        self.tell(min(done, self._total) if self._running else self._total)


def _correct(logits: Any, labels: Tensor) -> Right:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must give logits [batch, classes], but gave {shape} for "
            f"{len(labels)} samples; measure it with score= instead of data="
        )
    check_labels(labels, logits.shape[1])
    correct = logits.argmax(1).cpu() == labels
    return cast("npt.NDArray[np.bool_]", correct.numpy())

"""Evaluation by several processes, in rounds of batches after which all know every outcome."""

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
from primesvt.distributed import ProcessGroup, interleave
from primesvt.models.shared_prefix import VariantBatch

__all__ = ["ShardedEvaluation", "StopEarly"]

Right = npt.NDArray[np.bool_]
StopEarly = Callable[[int, Right], bool]


@dataclass(kw_only=True)
class ShardedEvaluation:
    """Networks on their way through a data set, whose whole batches are dealt out in turn.

    Of ``n`` processes number ``r`` answers batches ``r``, ``r + n`` and so on, and every batch is
    the one that a single process forms. In a race answers come together after every round, and
    ``leaves`` is told of them in the order of the batches; what a network has answered in a round
    after the batch with which it left does not count. So the outcomes are those of one process.
    Without a race they come together once, at the end.

    Args:
        together: the networks.
        dataset: pairs of a tensor and a label.
        device: where this process computes.
        batch_size: samples per forward pass.
        processes: those that take part.
        workers: processes that load samples.
        leaves: is told of a network's outcomes on a batch, and says whether that is enough.
        data: names the data set where activations may be kept.
        tell: hears how many samples are done.
    """

    together: VariantBatch
    dataset: Dataset[Any]
    device: torch.device
    batch_size: int
    processes: ProcessGroup
    workers: int = 0
    leaves: StopEarly | None = None
    data: Hashable = None
    tell: Callable[[int], None] = lambda _: None
    _found: list[list[Right]] = field(init=False, repr=False)
    _racing: list[int] = field(init=False, repr=False)

    def run(self) -> list[Right]:
        """For every network which samples it gets right, up to where it left."""
        self._found = [[] for _ in self.together.networks]
        self._racing = list(range(len(self._found)))
        rounds = math.ceil(self._total / (self.batch_size * self.processes.size))
        step = rounds if self.leaves is None else 1
        batches = self._batches()
        with self.together.evaluating():
            for first in range(0, rounds, step):
                numbers = range(first, min(first + step, rounds))
                for right in interleave(self._answered(batches, numbers)):
                    self._take(right)
                if self.leaves is not None:
                    self._told(numbers.stop)
                if not self._racing:
                    break
        return [np.concatenate(right) for right in self._found]

    def _answered(self, batches: Iterator[Any], rounds: range) -> list[list[dict[int, Right]]]:
        """What every process answered in some rounds: network -> which samples it gets right."""

        def mine() -> list[dict[int, Right]]:
            answers = []
            for number in rounds:
                batch = next(batches, None)
                if batch is not None:
                    answers.append(self._answer(batch, number))
                if self.leaves is None:
                    self._told(number + 1)
            return answers

        return self.processes.gather_calls(mine)

    def _answer(self, samples: tuple[Tensor, Tensor], number: int) -> dict[int, Right]:
        images, labels = samples
        batch = number * self.processes.size + self.processes.rank
        networks = self.together.only(self._racing)
        answers = networks(images.to(self.device), data=self.data, batch=batch)
        pairs = zip(self._racing, answers, strict=True)
        return {network: _correct(logits, labels) for network, logits in pairs}

    def _take(self, right: dict[int, Right]) -> None:
        """Note the answers to the next batch; those of networks that have left are dropped."""
        for network in self._racing:
            self._found[network].append(right[network])
        if self.leaves is not None:
            self._racing = [n for n in self._racing if not self.leaves(n, right[n])]

    def _batches(self) -> Iterator[Any]:
        """Those of this process."""
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

    def _told(self, rounds: int) -> None:
        done = rounds * self.batch_size * self.processes.size
        self.tell(min(done, self._total) if self._racing else self._total)


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

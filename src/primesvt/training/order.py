"""Which training images come in which step: one permutation for every epoch, drawn by the seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

__all__ = ["Order"]


class Order(Sampler[list[int]]):
    """The batches of an epoch, or what is left of them; incomplete ones are left out.

    Args:
        images: how many there are.
        batch_size: images of a step, over all processes.
        generator: draws the permutations.
        rank: the process whose share of each batch is wanted.
        size: how many processes there are.

    Example:
        >>> order = Order(5, 2, torch.Generator().manual_seed(0))
        >>> _ = order.begin()
        >>> first = list(order)
        >>> order.skip(1)
        >>> len(first), list(order) == first[1:]
        (2, True)
    """

    def __init__(
        self, images: int, batch_size: int, generator: Generator, *, rank: int = 0, size: int = 1
    ) -> None:
        self.images, self.generator = images, generator
        self.share = max(1, min(batch_size, images) // size)
        self.rank, self.batch_size = rank, self.share * size
        self.steps = images // self.batch_size
        self.state = generator.get_state()
        self._permutation = torch.arange(images)
        self._first = 0

    def begin(self) -> int:
        """Draw the order of an epoch; returns a seed for the processes that load it."""
        self.state = self.generator.get_state()
        seed = torch.empty((), dtype=torch.int64).random_(generator=self.generator).item()
        self._permutation = torch.randperm(self.images, generator=self.generator)
        self._first = 0
        return int(seed)

    def again(self, state: Tensor) -> int:
        """Draw the order of the epoch that began in a state of the generator."""
        self.generator.set_state(state)
        return self.begin()

    def skip(self, steps: int) -> None:
        """Leave out the first steps of the epoch."""
        self._first = steps

    def end(self) -> None:
        """Close the epoch."""
        # torch's RandomSampler draws once more here: with it, trainings on record repeat bitwise.
        torch.randperm(self.images, generator=self.generator)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first, self.steps):
            begin = step * self.batch_size + self.rank * self.share
            yield self._permutation[begin : begin + self.share].tolist()

    def __len__(self) -> int:
        return self.steps - self._first

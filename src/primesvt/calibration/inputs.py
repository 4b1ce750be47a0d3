"""Inputs without labels, in batches that can be run through a network again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, RandomSampler

from primesvt.models import reset
from primesvt.models.forward import in_its_dtype
from primesvt.models.state import drawing_alike

__all__ = ["CALIBRATION_BATCH", "CalibrationSet", "calibration_of"]

Batch = tuple[Any, ...]
CALIBRATION_BATCH = 64  # at least: means and variances of small batches say little


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Batches of model inputs without labels, for statistics of a network's activations.

    ``source`` gives the batches anew each time, always the same, so a large set is never held in
    memory at once.

    Example:
        >>> batches = [(torch.zeros(4, 3),), (torch.ones(2, 3),)]
        >>> CalibrationSet(source=lambda: iter(batches)).samples
        6
    """

    source: Callable[[], Iterator[Batch]] = field(repr=False)
    device: torch.device | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source():
            yield tree_map_only(Tensor, lambda tensor: tensor.to(self.device), batch)

    @property
    def samples(self) -> int:
        """Number of samples in all batches."""
        return sum(len(_first(batch)) for batch in self.source())

    def digest(self) -> str:
        """SHA-256 over every batch, which tells whether statistics were taken on the same inputs.

        Raises ``ValueError`` for values that are not finite, which would spoil all of them.
        """
        digest = hashlib.sha256()
        for number, batch in enumerate(self.source()):
            for leaf in tree_leaves(batch):
                if isinstance(leaf, Tensor):
                    if not bool(leaf.isfinite().all()):
                        raise ValueError(
                            f"calibration batch {number} holds NaN or infinity; give inputs as the"
                            " model sees them"
                        )
                    digest.update(str(tuple(leaf.shape)).encode())
                    dense = leaf.detach().cpu().contiguous().flatten()
                    digest.update(dense.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def fitting(self, model: nn.Module) -> CalibrationSet:
        """The same inputs in the dtype of a network all of whose weights have one."""
        return replace(self, source=lambda: (in_its_dtype(model, batch) for batch in self.source()))

    def run(self, model: nn.Module) -> Iterator[Any]:
        """Run every batch through a model with reset neurons; yields the model's outputs."""
        for number, batch in enumerate(self.fitting(model)):
            reset(model)
            with drawing_alike(model, number):
                answer = model(*batch)
            yield answer
            reset(model)


def calibration_of(
    inputs: Dataset[Any] | Iterable[Any] | Tensor,
    *,
    device: torch.device | None = None,
    batch_size: int = 64,
    workers: int = 0,
    limit: int | None = None,
) -> CalibrationSet:
    """Calibration batches from a tensor, a ``Dataset`` or batches of inputs.

    Of pairs ``(input, label)`` the label is left out. ``limit`` is the most samples taken;
    ``device`` where they are moved, ``None`` for nowhere.

    Raises:
        ValueError: nothing there.

    Example:
        >>> calibration_of(torch.zeros(5, 1), batch_size=2).samples
        5
    """
    batches: Iterable[Any]
    if isinstance(inputs, DataLoader) and isinstance(inputs.sampler, RandomSampler):
        raise ValueError(
            "calibration comes in another order each time it is read, and batches are compared;"
            " give its DataLoader shuffle=False"
        )
    if isinstance(inputs, Dataset):
        batches = DataLoader(inputs, batch_size=batch_size, num_workers=workers)
    elif isinstance(inputs, Tensor):
        batches = inputs.split(batch_size)
    else:
        batches = inputs if isinstance(inputs, Sequence | DataLoader) else list(inputs)
    found = CalibrationSet(source=partial(_limited, batches, limit), device=device)
    if next(iter(found), None) is None:
        raise ValueError("calibration holds no inputs; give at least one batch")
    return found


def _limited(batches: Iterable[Any], limit: int | None) -> Iterator[Batch]:
    left = limit
    for given in batches:
        batch = (given[0],) if isinstance(given, list | tuple) else (given,)
        if left is not None:
            if left <= 0:
                return
            batch = tree_map_only(Tensor, itemgetter(slice(left)), batch)
            left -= len(_first(batch))
        yield batch


def _first(batch: Batch) -> Tensor:
    return next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))

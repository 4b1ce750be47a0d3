"""What came of a fine-tuning, and what it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from primesvt.profiling.costs import Accuracy

__all__ = ["FinetuneRecord", "FinetuneResult", "Scores"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Top-1 of one network on both sets."""

    selection: Accuracy
    test: Accuracy | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Scores:
        """Read what ``dataclasses.asdict`` made."""
        return cls(**{name: _accuracy(content[name]) for name in ("selection", "test")})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecord:
    """How a pruned network was fine-tuned, and what that gave; written as ``record.json``.

    Attributes:
        command: the command line, where there was one.
        run: the run folder, where there is one.
        recipe: what was asked, fully resolved.
        context: what else the result depends on: digests of both networks and of the selection set,
            images and batches, the kind of device and its precision.
        data: the sets, in one line.
        data_spec: name or path of data that stood in place of the run's.
        versions: of Python and the packages that compute.
        processes: how many shared every batch.
        parameters: of the pruned network.
        seconds: of training and measuring, over all starts.
        kept_epoch: 0 where the weights before fine-tuning are the best.
        loss: mean of each epoch.
        selection_accuracy: before fine-tuning, then after each epoch.
        unpruned, before: the teacher, and the pruned network before fine-tuning.
        selection, test: the weights kept.
        notes: what a reader must know beside the figures.
    """

    format: int = 1
    command: str
    run: str | None
    recipe: Mapping[str, Any]
    context: Mapping[str, Any]
    data: str
    data_spec: str | None = None
    versions: Mapping[str, str]
    processes: int
    parameters: int
    seconds: float
    kept_epoch: int
    loss: tuple[float, ...]
    selection_accuracy: tuple[float, ...]
    unpruned: Scores | None
    before: Scores
    selection: Accuracy
    test: Accuracy | None
    notes: tuple[str, ...] = ()

    @property
    def after(self) -> Scores:
        """The weights kept."""
        return Scores(selection=self.selection, test=self.test)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FinetuneRecord:
        """Read what ``to_dict`` made."""
        values = dict(content)
        for name in ("unpruned", "before"):
            values[name] = None if values[name] is None else Scores.from_dict(values[name])
        for name in ("selection", "test"):
            values[name] = _accuracy(values[name])
        for name in ("loss", "selection_accuracy", "notes"):
            values[name] = tuple(values[name])
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The fine-tuned network, in evaluation mode, and its record."""

    model: nn.Module
    record: FinetuneRecord


def _accuracy(content: Mapping[str, Any] | None) -> Any:
    return None if content is None else Accuracy(**content)

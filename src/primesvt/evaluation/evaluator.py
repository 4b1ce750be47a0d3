"""Measure networks: per-sample outcomes, always on the same images in the same order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Sized
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from primesvt._guard import check_counts, random_state_kept
from primesvt._progress import Progress
from primesvt.calibration import evaluating
from primesvt.checkpoint.load import Data, splits_for
from primesvt.data import Splits
from primesvt.data.digest import data_digest
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup, resolve_device
from primesvt.evaluation.batch_dependence import batch_note, score_note
from primesvt.evaluation.confidence import Outcomes
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.evaluation.sharded import ShardedEvaluation, StopEarly
from primesvt.models import SpikingViT, reset
from primesvt.models.forward import first_samples, in_its_dtype
from primesvt.models.shared_prefix import VariantBatch

__all__ = [
    "DataEvaluator",
    "Evaluator",
    "Measurement",
    "OutcomePart",
    "Progress",
    "Score",
    "ScoreEvaluator",
    "class_count",
    "evaluator_for",
    "example_for",
    "measured",
    "outcomes",
    "telling",
]


Score = Callable[[nn.Module], Any]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The score of one network: its mean, and the outcome of every sample where they are known.

    ``outcomes`` is boolean (right or wrong), or float, or ``None`` for a score that is one number.
    ``rejected``: by a sequential test, so that outcomes end with the samples it had seen.
    """

    value: float
    outcomes: Outcomes | None = None
    rejected: bool = False


def measured(value: Any) -> Measurement:
    """Check what a score callable returned, and make a measurement of it.

    Raises ``ValueError`` unless it is one finite number or a vector of finite outcomes.

    Example:
        >>> measured([True, False, True, True]).value
        0.75
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim > 1 or array.size == 0:
        raise ValueError(
            "score must return one number or a vector of per-sample outcomes, "
            f"but returned {type(value).__name__} of shape {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"score returned {array[~np.isfinite(array)].flat[0]}; it must be finite")
    if array.ndim == 0:
        return Measurement(value=float(array))
    right_or_wrong = bool(np.isin(array, (0, 1)).all())
    found: Outcomes = array.astype(np.bool_) if right_or_wrong else array.astype(np.float64)
    return Measurement(value=float(found.mean()), outcomes=found)


@dataclass(frozen=True, kw_only=True)
class OutcomePart:
    """Some of the outcomes of a score: a share of them, drawn by a seed, or the others.

    Example:
        >>> searched = OutcomePart(total=5, share=0.4, seed=0)
        >>> others = replace(searched, rest=True)
        >>> sorted([*searched.rows, *others.rows])
        [0, 1, 2, 3, 4]
    """

    total: int
    share: float
    seed: int
    rest: bool = False

    @property
    def rows(self) -> list[int]:
        """Their places in what the score returns."""
        order = np.random.default_rng(self.seed).permutation(self.total).tolist()
        first = math.ceil(self.share * self.total)
        return list(map(int, order[first:] if self.rest else order[:first]))

    def of(self, found: Measurement) -> Measurement:
        """The part of a measurement; ``ValueError`` where the score has another length now."""
        count = 1 if found.outcomes is None else len(found.outcomes)
        if found.outcomes is None or count != self.total:
            raise ValueError(
                f"score returned {count} outcome(s) for a network and {self.total} for the unpruned"
                " one; it must judge the same samples each time"
            )
        return measured(found.outcomes[self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ScoreEvaluator:
    """A user's own score: model -> number (higher is better), or a vector of outcomes.

    Each of several ``processes`` calls it, and what it gives the first one counts for all. With a
    ``part`` only some of its outcomes count.
    """

    score: Score
    device: torch.device
    points: bool = False
    processes: ProcessGroup = SINGLE_PROCESS
    part: OutcomePart | None = None

    def __call__(self, model: nn.Module) -> Measurement:
        """Call the score on a network in evaluation mode with fresh neurons."""
        model.to(self.device)
        reset(model)
        with evaluating(model):
            found = self.processes.gather_calls(lambda: measured(self.score(model)))[0]
        return found if self.part is None else self.part.of(found)

    def context(self) -> dict[str, Any]:
        """The name of the score, the kind of device, and which outcomes count."""
        kind = type(self.score)
        module = getattr(self.score, "__module__", kind.__module__)
        name = getattr(self.score, "__qualname__", kind.__qualname__)
        facts = {"score": f"{module}.{name}", "device": self.device.type}
        return facts if self.part is None else facts | {"outcomes": self.part.to_dict()}

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """A note where the result depends on the batches that the score forms."""
        return score_note(model)


REPORT_AFTER = 2.0  # seconds of one evaluation


@random_state_kept()
def outcomes(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    stage: str = "evaluating",
    processes: ProcessGroup = SINGLE_PROCESS,
) -> npt.NDArray[np.bool_]:
    """Which samples a classifier gets right, in the order of the data set.

    Runs in evaluation mode without gradients; neurons are reset around every batch, and each
    module's ``training`` flag is put back.

    Args:
        model: gives logits ``[B, classes]``; moved to ``device``.
        dataset: pairs of a tensor and a label.
        batch_size: samples per forward pass; part of what is measured, as sums depend on it, and
            in some models every image on the others of its batch (``batch_note``).
        device: where to compute; where the model is, when not given.
        workers: processes that load samples.
        progress: called as ``progress(stage, done, total)`` after every batch.
        stage: what to tell ``progress``.
        processes: those that deal out the batches among them; all of them find all outcomes.

    Raises:
        ValueError: an empty data set, labels outside the classes, no logits, no such device.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.eye(3), torch.tensor([0, 1, 0]))
        >>> outcomes(nn.Identity(), data).tolist()
        [True, True, False]
    """
    check_counts(batch_size=batch_size, workers=workers)
    place = resolve_device(device, model)
    model.to(place)
    return _outcomes(
        VariantBatch(networks=[model]),
        dataset,
        place,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        stage=stage,
        processes=processes,
    )[0]


def _outcomes(
    variants: VariantBatch,
    dataset: Dataset[Any],
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    progress: Progress | None,
    stage: str,
    leaves: StopEarly | None = None,
    data: Hashable = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> list[npt.NDArray[np.bool_]]:
    """Which samples every network gets right, up to where it was stopped."""
    total = len(cast(Sized, dataset))
    if total == 0:
        raise ValueError("the data set is empty; give at least one sample")
    return ShardedEvaluation(
        variants=variants,
        dataset=dataset,
        device=device,
        batch_size=batch_size,
        processes=processes,
        workers=workers,
        leaves=leaves,
        data=data,
        tell=(lambda _: None) if progress is None else (lambda done: progress(stage, done, total)),
    ).run()


def class_count(model: nn.Module, dataset: Dataset[Any]) -> int:
    """How many classes a classifier tells apart, by its answer to the first sample.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> class_count(nn.Linear(4, 3), TensorDataset(torch.zeros(1, 4), torch.zeros(1)))
        3
    """
    if isinstance(model, SpikingViT):
        return model.config.num_classes
    first = dataset[0][0][None].to(resolve_device(None, model))
    reset(model)
    with evaluating(model):
        logits = model(*in_its_dtype(model, (first,)))
    reset(model)
    return int(logits.shape[-1])


class Evaluator(Protocol):
    """A function that measures networks, with a description of what its results depend on.

    ``points``: the accuracy limit is in percentage points, not in the score's own unit.
    ``processes``: those that measure together; each of them finds the same.
    """

    @property
    def points(self) -> bool: ...

    @property
    def processes(self) -> ProcessGroup: ...

    def __call__(self, model: nn.Module) -> Measurement:
        """Measure one network."""
        ...

    def context(self) -> dict[str, Any]:
        """The data and settings that a measurement depends on, for comparison between runs."""
        ...

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """Notes on what the results depend on."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataEvaluator:
    """Top-1 on the selection set; the test set is never looked at here.

    Several ``processes`` deal out the batches of every set, each of which is what one would form.
    ``progress`` hears of a measurement, as stage ``"measuring"``, once it has taken two seconds.
    """

    splits: Splits
    batch_size: int
    device: torch.device
    workers: int = 0
    points: bool = True
    processes: ProcessGroup = SINGLE_PROCESS
    progress: Progress | None = field(default=None, repr=False, compare=False)

    def __call__(self, model: nn.Module) -> Measurement:
        """Measure a network on the selection set."""
        progress = None if self.progress is None else _once_long(self.progress)
        return self.on(self.splits.selection, model, progress=progress, stage="measuring")

    def together(
        self,
        variants: VariantBatch,
        race: SequentialTest | None = None,
        before: Outcomes | None = None,
    ) -> list[Measurement]:
        """Measure several networks on the selection set in one pass.

        With a sequential test ``race`` against the outcomes ``before`` of the unpruned network,
        networks that it rejects see no further image.
        """
        runners = [race.start() for _ in variants.networks] if race is not None else []

        def leaves(number: int, right: npt.NDArray[np.bool_]) -> bool:
            assert before is not None
            first = runners[number].images
            known = before[first : first + len(right)]
            return runners[number].add(known.astype(np.int64) - right.astype(np.int64))

        found = _outcomes(
            variants,
            self.splits.selection,
            self.device,
            batch_size=self.batch_size,
            workers=self.workers,
            progress=None if self.progress is None else _once_long(self.progress),
            stage="measuring",
            leaves=leaves if runners and before is not None else None,
            data=("selection", id(self.splits.selection)),
            processes=self.processes,
        )
        early = [len(right) < len(cast(Sized, self.splits.selection)) for right in found]
        return [
            Measurement(value=float(right.mean()), outcomes=right, rejected=rejected)
            for right, rejected in zip(found, early, strict=True)
        ]

    def on(
        self,
        dataset: Dataset[Any],
        model: nn.Module,
        *,
        progress: Progress | None = None,
        stage: str = "evaluating",
    ) -> Measurement:
        """Measure a network on any set, under the same settings."""
        found = outcomes(
            model,
            dataset,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            progress=progress,
            stage=stage,
            processes=self.processes,
        )
        return Measurement(value=float(found.mean()), outcomes=found)

    def context(self) -> dict[str, Any]:
        """The selection set, batch size and kind of device."""
        return {
            "selection_set": data_digest(self.splits.selection),
            "batch_size": self.batch_size,
            "device": self.device.type,
        }

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """A note on the batches, where the images of a batch influence each other."""
        sets = {"selection": self.splits.selection, "test": self.splits.test}
        return batch_note(model, self.batch_size, **sets)


def telling(evaluate: Evaluator, progress: Progress | None) -> Evaluator:
    """An evaluator that reports the progress of long measurements."""
    if isinstance(evaluate, DataEvaluator):
        return replace(evaluate, progress=progress)
    return evaluate


def _once_long(progress: Progress) -> Progress:
    """A progress callback that is silent for the first two seconds."""
    begin = time.monotonic()

    def report(stage: str, done: int, total: int) -> None:
        if time.monotonic() - begin >= REPORT_AFTER:
            progress(stage, done, total)

    return report


def evaluator_for(
    model: nn.Module,
    data: Data | None,
    score: Score | None,
    device: torch.device,
    seed: int,
    batch_size: int,
    workers: int,
    processes: ProcessGroup = SINGLE_PROCESS,
    *,
    selection_from_train: bool = False,
) -> Evaluator:
    """The evaluator of a labelled set, or of a user's own score."""
    if (data is None) == (score is None):
        raise ValueError("give either data= (a labelled set) or score= (a callable), not both")
    if score is not None:
        return ScoreEvaluator(score=score, device=device, processes=processes)
    assert data is not None
    splits = splits_for(model, data, seed=seed, selection_from_train=selection_from_train)
    # Selection images come in one random order, on which early decisions rest.
    size = len(cast(Sized, splits.selection))
    order = np.random.default_rng([seed, size]).permutation(size)
    splits = replace(splits, selection=Subset(splits.selection, order.tolist()))
    return DataEvaluator(
        splits=splits, batch_size=batch_size, device=device, workers=workers, processes=processes
    )


def example_for(
    example_input: Any, calibration: Iterable[Any] | Tensor | None, evaluate: Evaluator
) -> tuple[Any, ...]:
    """Example inputs to trace a model with; empty where only a user's score has some."""
    if example_input is not None:
        return example_input if isinstance(example_input, tuple) else (example_input,)
    source: Any = calibration
    if source is None and isinstance(evaluate, DataEvaluator):
        source = evaluate.splits.calibration
    if source is None:
        return ()
    if isinstance(source, Dataset):
        first = next(iter(DataLoader(source, batch_size=2)))
    else:
        first = source if isinstance(source, Tensor) else next(iter(source))
    return first_samples((first[0] if isinstance(first, tuple | list) else first,))

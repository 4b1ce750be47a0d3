"""Scores: what a user's own measure of a network returns, per sample or as one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from primesvt.calibration import calibrating
from primesvt.distributed import ALONE, Processes
from primesvt.evaluation.batch_dependence import score_note
from primesvt.models import reset

__all__ = ["Measurement", "Outcomes", "Score", "ScoreEvaluator", "measured"]

Score = Callable[[nn.Module], Any]
Outcomes = npt.NDArray[np.bool_] | npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The score of one network: its mean, and the outcome of every sample where they are known.

    ``outcomes`` is boolean (right or wrong), or float, or ``None`` for a score that is one number.
    ``rejected`` says that it left a race: the outcomes are those of the samples it had seen.
    """

    value: float
    outcomes: Outcomes | None = None
    rejected: bool = False


def measured(value: Any) -> Measurement:
    """What a score callable returned, as a measurement.

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
class ScoreEvaluator:
    """A user's own score: model -> number (higher is better), or a vector of outcomes.

    Each of several ``processes`` calls it, and what it gives the first one counts for all.
    """

    score: Score
    device: torch.device
    points: bool = False
    processes: Processes = ALONE

    def __call__(self, model: nn.Module) -> Measurement:
        """Call the score on a network in evaluation mode with fresh neurons."""
        model.to(self.device)
        reset(model)
        with calibrating(model):
            return self.processes.everywhere(lambda: measured(self.score(model)))[0]

    def context(self) -> dict[str, Any]:
        """The name of the score and the kind of device."""
        kind = type(self.score)
        module = getattr(self.score, "__module__", kind.__module__)
        name = getattr(self.score, "__qualname__", kind.__qualname__)
        return {"score": f"{module}.{name}", "device": self.device.type}

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """That the score's own batches matter, where they do."""
        return score_note(model)

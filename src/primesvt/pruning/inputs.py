"""Inputs as users give them, made ready for a run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from primesvt.calibration import CALIBRATION_BATCH, Calibration, calibration_of
from primesvt.checkpoint.load import Data, splits_for
from primesvt.config import Constraints, parse_bytes
from primesvt.data import Splits
from primesvt.distributed import ALONE, Processes
from primesvt.evaluation.evaluator import DataEvaluator, Evaluator, Score, ScoreEvaluator
from primesvt.evaluation.recording import first_samples
from primesvt.models import reset
from primesvt.models.forward import state_tensors
from primesvt.pruning.confirmation import divide, parted
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.settings import Settings

__all__ = [
    "Data",
    "calibration_for",
    "check_no_nan",
    "evaluator_for",
    "example_for",
    "memory_bytes",
    "set_aside",
    "working_copy",
]


def evaluator_for(
    model: nn.Module,
    data: Data | None,
    score: Score | None,
    device: torch.device,
    seed: int,
    batch_size: int,
    workers: int,
    processes: Processes = ALONE,
) -> Evaluator:
    if (data is None) == (score is None):
        raise ValueError("give either data= (a labelled set) or score= (a callable), not both")
    if score is not None:
        return ScoreEvaluator(score=score, device=device, processes=processes)
    assert data is not None
    splits = _in_random_order(splits_for(model, data, seed=seed), seed)
    return DataEvaluator(
        splits=splits, batch_size=batch_size, device=device, workers=workers, processes=processes
    )


def set_aside(
    evaluate: Evaluator,
    settings: Settings,
    constraints: Constraints,
    earlier: ProbeTable | None,
    seed: int,
) -> tuple[Evaluator, Dataset[Any] | None, tuple[str, ...]]:
    """Selection images for the confirmation, where that is asked for and possible.

    Solving again from earlier probes keeps the images that those were made on.
    """
    wanted = settings.confirm and settings.gate == "bound" and constraints.max_accuracy_drop > 0
    if not isinstance(evaluate, DataEvaluator):
        return evaluate, None, ()
    if earlier is not None and earlier.reference is not None:
        return _as_before(evaluate, earlier.reference, wanted=wanted, seed=seed)
    if not wanted:
        return evaluate, None, ()
    limit = constraints.max_accuracy_drop / 100
    splits, aside, told = divide(evaluate.splits, limit, seed=seed)
    return replace(evaluate, splits=splits), aside, (told,)


def _as_before(
    evaluate: DataEvaluator, earlier: Reference, *, wanted: bool, seed: int
) -> tuple[Evaluator, Dataset[Any] | None, tuple[str, ...]]:
    """The images that the earlier probes were made on: all of them, or the part for searching."""
    before = earlier.context.get("selection_set")
    rest, aside = parted(evaluate.splits, seed=seed)
    searching = replace(evaluate, splits=rest)
    if before == searching.context()["selection_set"]:
        told = "The earlier probes left images aside, which confirm the plan and choose nothing."
        return searching, aside if wanted else None, (told,) if wanted else ()
    if wanted:
        return evaluate, None, ("The earlier probes saw all selection images: none confirms.",)
    return evaluate, None, ()


def calibration_for(
    given: Iterable[Any] | Tensor | None,
    evaluate: Evaluator,
    device: torch.device,
    batch_size: int,
) -> Calibration | None:
    """Inputs without labels, where any were given or come with the data."""
    source: Any = given
    if source is None and isinstance(evaluate, DataEvaluator):
        source = evaluate.splits.calibration
    if source is None:
        return None
    # Batch norms are estimated batch by batch: small batches would estimate badly.
    size = max(batch_size, CALIBRATION_BATCH)
    workers = evaluate.workers if isinstance(evaluate, DataEvaluator) else 0
    return calibration_of(source, device=device, batch_size=size, workers=workers)


def memory_bytes(limit: str | float | None) -> int | None:
    """A memory limit in bytes; ``ValueError`` for what is no size, or none at all."""
    found = parse_bytes(limit, name="memory_limit") if isinstance(limit, str) else limit
    if found is None:
        return None
    if not 0 < found < math.inf:
        raise ValueError(f"memory_limit is {limit}, but must be above 0, such as '4GB'")
    return int(found)


def example_for(
    example_input: Any, calibration: Iterable[Any] | Tensor | None, evaluate: Evaluator
) -> tuple[Any, ...]:
    """Inputs to trace with; empty where only the score can show one."""
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


def check_no_nan(model: nn.Module) -> None:
    """Norms, probes and checks mean nothing beside a NaN."""
    for name, tensor in state_tensors(model).items():
        if bool(tensor.isnan().any()):
            raise ValueError(
                f"'{name}' holds NaN: give the weights of a training that did not diverge"
            )


def working_copy(model: nn.Module, device: torch.device) -> nn.Module:
    reset(model)
    return copy.deepcopy(model).to(device).eval()


def _in_random_order(splits: Splits, seed: int) -> Splits:
    """Selection images in one order drawn by the seed, which early decisions rest on."""
    size = len(cast(Sized, splits.selection))
    order = np.random.default_rng([seed, size]).permutation(size)
    return replace(splits, selection=Subset(splits.selection, order.tolist()))

"""The images and unlabelled inputs of a run: to search with, to confirm with, to calibrate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset, Subset

from primesvt.calibration import CALIBRATION_BATCH, CalibrationSet, calibration_of
from primesvt.checkpoint.load import Data
from primesvt.config import PruneConfig
from primesvt.data import Splits
from primesvt.evaluation.evaluator import (
    DataEvaluator,
    Evaluator,
    Measurement,
    OutcomePart,
    Progress,
    ScoreEvaluator,
    example_for,
    telling,
)
from primesvt.evaluation.recording import record_inputs
from primesvt.models.forward import copy_of, evaluating, first_samples, in_its_dtype
from primesvt.models.state import Behaviour, at_rest, settle, unrepeatable
from primesvt.pruning.probe_table import ProbeTable, Reference

__all__ = [
    "Data",
    "RunInputs",
    "calibration_for",
    "distance_inputs",
    "divide",
    "divide_outcomes",
    "images_needed",
    "parted",
    "set_aside",
    "unlabelled",
    "working_copy",
]

DISTANCE_SAMPLES = 512


# Networks at the edge of a limit differ from the unpruned one in about three times as many answers.
DISAGREEMENT = 3.0


SEARCHED = 0.4  # of the selection images


def images_needed(limit: float, *, level_quantile: float = 1.645) -> int:
    """How many images a bound needs to tell a drop of half the limit from the limit.

    ``(z / limit)^2 x disagreement x 4``, with a disagreement of three times the limit.

    Example:
        >>> images_needed(0.03), images_needed(0.01)
        (1083, 3248)
    """
    return math.ceil((level_quantile / limit) ** 2 * DISAGREEMENT * limit * 4)


def divide_outcomes(
    search: Evaluator,
    inputs: RunInputs,
    config: PruneConfig,
    tables: Sequence[ProbeTable | None],
) -> tuple[Evaluator, Evaluator | None, RunInputs, tuple[str, ...]]:
    """Set outcomes of a score aside for the confirmation, as images are of a data set.

    Args:
        search: nothing is done where it has data, or a score that is one number.
        inputs: with the measurement of the unpruned network.
        config: whether a confirmation is asked for, and the limit.
        tables: probes made before, whose division is kept.

    Returns:
        What searches, what confirms (or ``None``), the inputs with the measurement of the part that
        searches, and sentences for the result.
    """
    method, drop = config.method, config.limits.max_accuracy_drop
    wanted = method.confirm and method.gate == "bound" and drop > 0
    before = next((t.reference.context for t in tables if t is not None), None)
    if not isinstance(search, ScoreEvaluator):
        return search, None, inputs, ()
    found = None if inputs.measurement is None else inputs.measurement.outcomes
    size = 0 if found is None or found.dtype != np.bool_ else len(found)
    notes: tuple[str, ...] = ()
    if before is not None:
        part = OutcomePart(**before["outcomes"]) if "outcomes" in before else None
    else:
        enough = size >= math.ceil(images_needed(drop) / SEARCHED) if wanted else False
        part = OutcomePart(total=size, share=SEARCHED, seed=config.run.seed) if enough else None
        if wanted and size and part is None:
            notes = (_too_few(size, drop, "outcomes of the score"),)
    if part is None:
        return search, None, inputs, notes
    if inputs.measurement is not None:
        inputs = replace(inputs, measurement=part.of(inputs.measurement))
    rest = replace(search, part=replace(part, rest=True))
    kept = len(rest.part.rows) if rest.part is not None else 0
    told = f"{kept:,} of {part.total:,} outcomes of the score confirm the plan and choose nothing."
    return replace(search, part=part), rest if wanted else None, inputs, (told,) if wanted else ()


def _too_few(size: int, limit: float, what: str) -> str:
    wanted = math.ceil(images_needed(limit) / SEARCHED)
    return (
        f"{size:,} {what} are too few to set some aside and confirm the plan on them (a limit of"
        f" {100 * limit:g} points wants {wanted:,}): what was searched for on them is judged on"
        " them too, and looks a little too good."
    )


def divide(
    splits: Splits, limit: float, *, seed: int = 0
) -> tuple[Splits, Dataset[Any] | None, str]:
    """Set aside most of the selection images for the confirmation, if both parts are large enough.

    Three of five, drawn by the seed: the search chooses mostly by distances and may err, the
    confirmation decides. Returns the splits to search with, the images set aside (or ``None``), and
    a sentence for the result.
    """
    size = len(cast(Sized, splits.selection))
    if size < math.ceil(images_needed(limit) / SEARCHED):
        return splits, None, _too_few(size, limit, "selection images")
    rest, aside = parted(splits, seed=seed)
    kept = len(cast(Sized, aside))
    note = f"{kept:,} of {size:,} selection images confirm the plan and choose nothing."
    return rest, aside, note


def parted(splits: Splits, *, seed: int) -> tuple[Splits, Dataset[Any]]:
    """Split the selection images into those to search with and those to confirm with."""
    size = len(cast(Sized, splits.selection))
    order, searched = np.random.default_rng(seed).permutation(size), math.ceil(SEARCHED * size)
    rest = Subset(splits.selection, order[:searched].tolist())
    return replace(splits, selection=rest), Subset(splits.selection, order[searched:].tolist())


def set_aside(
    evaluate: Evaluator, config: PruneConfig, earlier: ProbeTable | None
) -> tuple[Evaluator, Dataset[Any] | None, tuple[str, ...]]:
    """Set selection images aside for the confirmation, where that is asked for and possible.

    Solving again from earlier probes keeps the images that those were made on.
    """
    method, drop, seed = config.method, config.limits.max_accuracy_drop, config.run.seed
    wanted = method.confirm and method.gate == "bound" and drop > 0
    if not isinstance(evaluate, DataEvaluator):  # a score is divided once it has been called
        return evaluate, None, ()
    if earlier is not None:
        return _as_before(evaluate, earlier.reference, wanted=wanted, seed=seed)
    if not wanted:
        return evaluate, None, ()
    splits, aside, note = divide(evaluate.splits, drop / 100, seed=seed)
    return replace(evaluate, splits=splits), aside, (note,)


def _as_before(
    evaluate: DataEvaluator, earlier: Reference, *, wanted: bool, seed: int
) -> tuple[Evaluator, Dataset[Any] | None, tuple[str, ...]]:
    """Split the selection images as the run did whose probes are used again, if it did."""
    before = earlier.context.get("selection_set")
    rest, aside = parted(evaluate.splits, seed=seed)
    searching = replace(evaluate, splits=rest)
    if before == searching.context()["selection_set"]:
        note = "The earlier probes left images aside, which confirm the plan and choose nothing."
        return searching, aside if wanted else None, (note,) if wanted else ()
    if wanted:
        return evaluate, None, ("The earlier probes saw all selection images: none confirms.",)
    return evaluate, None, ()


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Unlabelled inputs of a run: some to trace with, and those to gather statistics on.

    Attributes:
        example: inputs to trace with, as the model takes them.
        calibration: inputs for statistics; ``None`` where there are none.
        measurement: the unpruned network's, where finding inputs took one.
        notes: what was done about state between forwards, and about randomness.
    """

    example: tuple[Any, ...]
    calibration: CalibrationSet | None
    measurement: Measurement | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        unpruned: nn.Module,
        evaluate: Evaluator,
        *,
        example: Any,
        calibration: Iterable[Any] | Tensor | None,
        batch_size: int,
        measure: bool,
        progress: Progress | None,
    ) -> RunInputs:
        """Find inputs: those given, those of the data, or those that one call of the score shows.

        With ``measure`` the network is measured in any case.
        """
        device = evaluate.processes.device
        found = in_its_dtype(unpruned, example_for(example, calibration, evaluate))
        inputs = calibration_for(calibration, evaluate, device, batch_size)
        if inputs is not None:
            inputs = inputs.fitting(unpruned)
        behaviour = settled(unpruned, found, device) if found else Behaviour()
        if found and inputs is not None and not measure:
            return cls(example=found, calibration=inputs, notes=behaviour.notes)
        # The first call may leave a state behind that is not known of yet.
        measured = unpruned if found else copy_of(unpruned)
        recorded = record_inputs(measured, telling(evaluate, progress))
        if not found and not recorded.batches:
            raise ValueError(
                "score never called the model with an input, so nothing can be traced; "
                "give example_input="
            )
        if not found:
            found = first_samples(recorded.batches[0])
            behaviour = settled(unpruned, found, device)
            if behaviour.notes:  # it was measured with what earlier forwards had left
                recorded = record_inputs(unpruned, telling(evaluate, progress))
        return cls(
            example=found,
            calibration=inputs or recorded.calibration(unpruned),
            measurement=recorded.measurement,
            notes=behaviour.notes,
        )

    @property
    def batch(self) -> tuple[Any, ...]:
        """A batch of inputs: the first for statistics, or the example."""
        return self.example if self.calibration is None else next(iter(self.calibration))


def settled(model: nn.Module, example: tuple[Any, ...], device: torch.device) -> Behaviour:
    """Find the state and the randomness of a network, which ``reset`` then takes care of.

    Raises ``ValueError`` where two forwards differ all the same: no two networks could be compared.
    """
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), example)
    with evaluating(model):
        behaviour = settle(model, inputs)
    if not behaviour.repeatable:
        raise ValueError(unrepeatable(model))
    return behaviour


def calibration_for(
    given: Iterable[Any] | Tensor | None,
    evaluate: Evaluator,
    device: torch.device,
    batch_size: int,
) -> CalibrationSet | None:
    """Calibration inputs, where any were given or come with the data; else ``None``."""
    source: Any = given
    if source is None and isinstance(evaluate, DataEvaluator):
        source = evaluate.splits.calibration
    if source is None:
        return None
    # Batch norms are estimated batch by batch: small batches would estimate badly.
    size = max(batch_size, CALIBRATION_BATCH)
    workers = evaluate.workers if isinstance(evaluate, DataEvaluator) else 0
    return calibration_of(source, device=device, batch_size=size, workers=workers)


def working_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a network on a device, in evaluation mode and with reset neurons."""
    with at_rest(model):
        return copy_of(model).to(device).eval()


def unlabelled(
    evaluate: Evaluator, calibration: CalibrationSet | None
) -> tuple[CalibrationSet, ...]:
    """All inputs to watch for silent channels: for calibration, then those of the selection set.

    A score shows only the first.
    """
    known = () if calibration is None else (calibration,)
    if not isinstance(evaluate, DataEvaluator):
        return known
    return (*known, _selection(evaluate, evaluate.splits.selection))


def distance_inputs(
    evaluate: Evaluator, calibration: CalibrationSet | None
) -> CalibrationSet | None:
    """Inputs to measure divergence on, which recovery did not use: spread over the selection set.

    The calibration inputs where there is no data set.
    """
    if not isinstance(evaluate, DataEvaluator):
        return calibration
    selection = evaluate.splits.selection
    size = len(cast(Sized, selection))
    places = np.unique(np.linspace(0, size - 1, min(size, DISTANCE_SAMPLES)).round().astype(int))
    return _selection(evaluate, Subset(selection, places.tolist()))


def _selection(evaluate: DataEvaluator, images: Dataset[Any]) -> CalibrationSet:
    """Images of a data set as unlabelled inputs, in batches as they are measured."""
    return calibration_of(
        images,
        device=evaluate.device,
        batch_size=evaluate.batch_size,
        workers=evaluate.workers,
    )

"""From settings and calibration inputs to the prober that cuts and measures networks."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import nn
from torch.utils.data import Subset

from primesvt.calibration import (
    CALIBRATION_BATCH,
    ActivationStatistics,
    CalibrationSet,
    calibration_of,
)
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.evaluation.divergence import OutputDivergence
from primesvt.evaluation.evaluator import DataEvaluator, Evaluator
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.importance import WITHOUT_INPUTS, CriterionContext, find_importance
from primesvt.models.forward import batch_of
from primesvt.profiling.memory import peak_activation_bytes
from primesvt.pruning.policies import AccuracyGate
from primesvt.pruning.probe_table import ProbeTable
from primesvt.pruning.prober import Prober
from primesvt.pruning.settings import Settings
from primesvt.pruning.variants import NETWORKS, room_for
from primesvt.recovery import Recovery

__all__ = ["DISTANCE_SAMPLES", "Method", "inputs_of", "memory_for_networks", "prober_of", "race_of"]


DISTANCE_SAMPLES = 512


@dataclass(frozen=True, kw_only=True)
class Method:
    """Importance, recovery and policy of a run: those asked for, where its inputs allow them.

    Without calibration inputs nothing is recovered, and channels are ranked by their weights;
    ``notes`` say so.
    """

    importance: str
    recovery: str
    policy: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, calibration: CalibrationSet | None) -> Method:
        """What the settings ask for; what needs missing calibration inputs is replaced."""
        importance, recovery, notes = settings.importance, settings.recovery, []
        if calibration is None and recovery != "none":
            notes.append(
                f"There were no calibration inputs, so recovery is 'none' instead of {recovery!r};"
                " give calibration= for it."
            )
            recovery = "none"
        if calibration is None and importance not in WITHOUT_INPUTS:
            notes.append(
                f"There were no calibration inputs, so importance is 'l2' instead of"
                f" {importance!r}; give calibration= for it."
            )
            importance = "l2"
        return cls(
            importance=importance, recovery=recovery, policy=settings.policy, notes=tuple(notes)
        )

    @property
    def looks(self) -> bool:
        """Calibration inputs have a part in the result."""
        return self.recovery != "none" or self.importance not in WITHOUT_INPUTS


def prober_of(
    model: nn.Module,
    graph: ChannelGraph,
    groups: tuple[ChannelGroup, ...],
    *,
    method: Method,
    evaluate: Evaluator,
    table: ProbeTable,
    calibration: CalibrationSet | None,
    seed: int,
    race: SequentialTest | None = None,
    memory: int = NETWORKS,
) -> Prober:
    """The bench of a run; statistics are gathered when first asked for."""
    activity = None
    if calibration is not None and method.looks:
        activity = ActivationStatistics(
            model=model, graph=graph, groups=groups, calibration=calibration
        )
    inputs = _distance_inputs(evaluate, calibration) if method.policy == "allocate" else None
    return Prober(
        model=model,
        graph=graph,
        evaluate=evaluate,
        table=table,
        importance=find_importance(method.importance),
        evidence=CriterionContext(model=model, graph=graph, activity=activity, seed=seed),
        recovery=Recovery(kind=method.recovery, activity=activity),
        distance=None if inputs is None else OutputDivergence(model, inputs),
        race=race,
        memory=memory,
        processes=evaluate.processes,
    )


def memory_for_networks(
    model: nn.Module, example: tuple[Any, ...], evaluate: Evaluator, *, limit: int | None
) -> int:
    """Bytes for networks measured together: what a limit leaves beside one batch of activations.

    The batch is the larger one of measuring and recovering. Statistics are not counted.

    Raises ``ValueError`` where a batch alone takes more, or the networks do not fit beside it.
    """
    if limit is None or not isinstance(evaluate, DataEvaluator):
        return NETWORKS if limit is None else limit
    size = max(evaluate.batch_size, CALIBRATION_BATCH)
    batch = size * peak_activation_bytes(model, example) // batch_of(example)
    if batch >= limit:
        fix = "lower batch_size, or raise" if size > CALIBRATION_BATCH else "raise"
        raise ValueError(
            f"one batch of {size} takes {batch:,} bytes of activations, but memory_limit is"
            f" {limit:,}; {fix} the limit"
        )
    room_for(model, limit - batch)
    return limit - batch


def race_of(settings: Settings, gate: AccuracyGate, evaluate: Evaluator) -> SequentialTest | None:
    """When probes may be rejected early; ``None`` where all are to see all images."""
    found = gate.reference.measurement.outcomes
    if settings.exact or not isinstance(evaluate, DataEvaluator) or found is None:
        return None
    return SequentialTest(
        limit=gate.allowed,
        total=len(found),
        gate=gate.kind,
        level=gate.level,
        error=settings.race_error,
    )


def inputs_of(
    evaluate: Evaluator, calibration: CalibrationSet | None
) -> tuple[CalibrationSet, ...]:
    """All inputs without labels: those for statistics, then those that choices are made on.

    A score shows only the first.
    """
    known = () if calibration is None else (calibration,)
    if not isinstance(evaluate, DataEvaluator):
        return known
    selection = calibration_of(
        evaluate.splits.selection,
        device=evaluate.device,
        batch_size=evaluate.batch_size,
        workers=evaluate.workers,
    )
    return (*known, selection)


def _distance_inputs(
    evaluate: Evaluator, calibration: CalibrationSet | None
) -> CalibrationSet | None:
    """Inputs that recovery has not seen, where there are any: spread over the selection set."""
    if not isinstance(evaluate, DataEvaluator):
        return calibration
    selection = evaluate.splits.selection
    size = len(cast(Sized, selection))
    places = np.unique(np.linspace(0, size - 1, min(size, DISTANCE_SAMPLES)).round().astype(int))
    return calibration_of(
        Subset(selection, places.tolist()),
        device=evaluate.device,
        batch_size=evaluate.batch_size,
        workers=evaluate.workers,
    )

"""The end of a run: the figures before and after, for which a test set is looked at, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from primesvt.calibration import Calibration
from primesvt.channels.plan import Plan
from primesvt.config import Constraints
from primesvt.evaluation.evaluator import DataEvaluator, Evaluator, Progress
from primesvt.latency import Latency, measure
from primesvt.profiling.costs import Accuracy, Costs, accuracy_of, costs_of
from primesvt.pruning.candidates import Candidates
from primesvt.pruning.confirmation import Confirmation
from primesvt.pruning.limits import Held
from primesvt.pruning.lossless import Lean
from primesvt.pruning.metrics import Metrics, conclude, notes_of
from primesvt.pruning.policies import Gate, Walk

__all__ = ["Conclusion", "Solved"]

Latencies = Mapping[str, tuple[Latency, ...]]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What the policy took, the plan that says so, and the smaller model.

    ``lean`` is the network that the policy started from. ``confirmation`` is there where images
    were set aside for it and the plan is not empty. ``held`` are the limits beside accuracy and
    parameter memory.
    """

    walk: Walk
    plan: Plan
    model: nn.Module
    lean: Lean
    candidates: Candidates
    confirmation: Confirmation | None = None
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Measures the network given and the final one.

    Args:
        evaluate: knows the test set, where there is one.
        constraints: the limits.
        gate: what decided, with the measured reference.
        example: inputs to run once for membrane and activation memory.
        calibration: inputs to count operations on; the example, when not given.
        latency: measure how long both networks take.
        progress: called as ``progress(stage, done, total)``.
    """

    evaluate: Evaluator
    constraints: Constraints
    gate: Gate
    example: tuple[Any, ...] = field(repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    latency: bool = False
    progress: Progress | None = field(default=None, repr=False)

    def metrics(self, original: nn.Module, solved: Solved, notes: Sequence[str]) -> Metrics:
        """All figures of the run."""
        walk, reference, account = solved.walk, self.gate.reference, solved.lean.account
        splits = self.evaluate.splits if isinstance(self.evaluate, DataEvaluator) else None
        lossless = account.notes if account is not None else ()
        refused = (f"Refused: {each}." for each in solved.candidates.refusals)
        facts = conclude(
            walk,
            reference,
            self.constraints,
            gate=self.gate,
            points=self.evaluate.points,
            lossless=account,
            others=solved.held,
        )
        took = self._latencies(original, solved.model)
        return Metrics(
            **facts,
            limits=asdict(self.constraints),
            before=self._costs(original, reference.accuracy, "before", took),
            after=self._costs(solved.model, self._last(solved), "after", took),
            data=splits.description() if splits else "",
            selection_from_train=splits is not None and splits.selection_from_train,
            confirmation=None if solved.confirmation is None else asdict(solved.confirmation),
            lossless=account,
            notes=notes_of(walk, [*self.evaluate.notes(original), *notes, *lossless, *refused]),
        )

    def _last(self, solved: Solved) -> float:
        """The score of the final network."""
        if solved.walk.probe is not None:
            return solved.walk.probe.accuracy
        account = solved.lean.account
        if isinstance(self.evaluate, DataEvaluator) or account is None or not account.parameters:
            return self.gate.reference.accuracy
        return self.evaluate(solved.model).value  # equal predictions need not be an equal score

    def _costs(self, model: nn.Module, value: float, when: str, took: Latencies) -> Costs:
        if self.progress is not None:
            self.progress(f"counting operations, {when}", 0, 0)
        measured = partial(
            costs_of,
            model,
            self._placed(self.example, model),
            inputs=self.calibration,
            latency=took.get(when, ()),
        )
        if not isinstance(self.evaluate, DataEvaluator):
            return measured(score=value)
        found = self.gate.reference.measurement.outcomes
        test = self.evaluate.splits.test
        return measured(
            selection=accuracy_of(value, None if found is None else len(found)),
            test=None if test is None else self._test(test, model, when),
        )

    def _latencies(self, before: nn.Module, after: nn.Module) -> Latencies:
        """How long both networks take, measured in turn, where that was asked for."""
        if not self.latency:
            return {}
        if self.progress is not None:
            self.progress("measuring latency", 0, 0)
        inputs = self.example if self.calibration is None else next(iter(self.calibration))
        networks = {"before": before, "after": after}
        return self.evaluate.processes.on_main(lambda: measure(networks, inputs))

    @staticmethod
    def _placed(inputs: tuple[Any, ...], model: nn.Module) -> tuple[Any, ...]:
        """Inputs where a network is."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        placed: tuple[Any, ...] = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
        return placed

    def _test(self, dataset: Dataset[Any], model: nn.Module, when: str) -> Accuracy | None:
        assert isinstance(self.evaluate, DataEvaluator)
        stage = f"test set, {when}"
        found = self.evaluate.on(dataset, model, progress=self.progress, stage=stage)
        assert found.outcomes is not None
        return accuracy_of(found.value, len(found.outcomes))

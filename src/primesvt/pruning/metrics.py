"""Measure a network before and after pruning, and say whether the limits were met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from primesvt._files import validated
from primesvt._format import above
from primesvt.calibration import CalibrationSet
from primesvt.channels.plan import Plan
from primesvt.config import Limits
from primesvt.evaluation.confidence import Accuracy, accuracy_of, chance_note
from primesvt.evaluation.evaluator import DataEvaluator, Evaluator, Progress, class_count
from primesvt.models.forward import batch_of
from primesvt.profiling.energy import Energy, energy_of
from primesvt.profiling.limits import LimitOutcome
from primesvt.profiling.memory import (
    buffer_bytes,
    file_bytes,
    membrane_bytes,
    parameter_bytes,
    parameter_count,
    peak_activation_bytes,
)
from primesvt.profiling.operations import Operations, count_operations
from primesvt.profiling.timing import Latency, measure
from primesvt.pruning.candidates import Candidates
from primesvt.pruning.confirmation import Confirmation
from primesvt.pruning.lossless import LosslessRecord, StartNetwork
from primesvt.pruning.policies import AccuracyGate, PolicyResult
from primesvt.pruning.probe_table import Reference

__all__ = [
    "Accuracy",
    "Conclusion",
    "Costs",
    "Metrics",
    "Solved",
    "conclude",
    "costs_of",
    "notes_of",
]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The size of one network, what it takes to run it, and its accuracy.

    ``selection`` and ``test`` are there only for a set of images, ``score`` only for a ``score``.
    Files of earlier versions lack ``file_bytes``, ``operations`` and ``energy``; ``latency`` is
    there only where it was asked for.

    Attributes:
        parameters: how many, shared ones once.
        parameter_bytes: their bytes: the memory that savings are measured in.
        buffer_bytes: bytes of running statistics and other buffers.
        file_bytes: ``model.safetensors`` on the disk.
        membrane_bytes_per_sample: one potential per neuron; ``None`` where neurons are unknown.
        peak_activation_bytes_per_sample: most bytes of activations at a time.
        operations: multiply-accumulates, SynOps and firing rates, of every module too.
        energy: two estimates for one sample, in joules (``primesvt.profiling.energy.formulas``).
        latency: measured times of a forward pass.
    """

    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    membrane_bytes_per_sample: int | None
    peak_activation_bytes_per_sample: int
    selection: Accuracy | None = None
    test: Accuracy | None = None
    score: float | None = None
    file_bytes: int | None = None
    operations: Operations | None = None
    energy: Energy | None = None
    latency: tuple[Latency, ...] = field(default=())

    @classmethod
    def from_dict(cls, content: Any) -> Costs:
        """Read what ``dataclasses.asdict`` made, from JSON and from earlier versions too."""
        return validated(cls, content)


def costs_of(
    model: nn.Module,
    example: tuple[Any, ...],
    *,
    inputs: Iterable[tuple[Any, ...]] | None = None,
    selection: Accuracy | None = None,
    test: Accuracy | None = None,
    score: float | None = None,
    latency: tuple[Latency, ...] = (),
) -> Costs:
    """Measure the memory, operations, firing rates and energy of a network.

    The example is run once for membrane and activation memory, the inputs for operations.

    Args:
        model: any network.
        example: inputs, as the model takes them.
        inputs: batches to count operations on, without labels; the example when not given.
        selection, test, score: how good the network is.
        latency: how long it takes.

    Example:
        >>> import torch
        >>> costs = costs_of(nn.Linear(4, 2, bias=False), (torch.rand(1, 4),))
        >>> costs.parameter_bytes, costs.operations.macs
        (32, 8.0)
    """
    size = parameter_bytes(model)
    operations = count_operations(model, [example] if inputs is None else inputs)
    return Costs(
        parameters=parameter_count(model),
        parameter_bytes=size,
        buffer_bytes=buffer_bytes(model),
        file_bytes=file_bytes(model),
        membrane_bytes_per_sample=membrane_bytes(model, example),
        peak_activation_bytes_per_sample=peak_activation_bytes(model, example) // batch_of(example),
        operations=operations,
        energy=energy_of(operations, size),
        latency=latency,
        selection=selection,
        test=test,
        score=score,
    )


Latencies = Mapping[str, tuple[Latency, ...]]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The outcome of a search: what the policy chose, as a plan and as a smaller model.

    ``start`` is the network that the policy started from. ``confirmation`` is there where images
    were set aside for it and the plan is not empty. ``others`` are the limits beside accuracy and
    parameter memory.
    """

    found: PolicyResult
    plan: Plan
    model: nn.Module
    start: StartNetwork
    candidates: Candidates
    confirmation: Confirmation | None = None
    others: tuple[LimitOutcome, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Measures the networks before and after pruning, for ``metrics.json`` and the report.

    Args:
        evaluate: knows the test set, where there is one.
        limits: what the user allows and asks for.
        gate: what decided, with the measured reference.
        example: inputs to run once for membrane and activation memory.
        calibration: inputs to count operations on; the example, when not given.
        latency: measure how long both networks take.
        progress: called as ``progress(stage, done, total)``.
    """

    evaluate: Evaluator
    limits: Limits
    gate: AccuracyGate
    example: tuple[Any, ...] = field(repr=False)
    calibration: CalibrationSet | None = field(default=None, repr=False)
    latency: bool = False
    progress: Progress | None = field(default=None, repr=False)

    def metrics(self, original: nn.Module, solved: Solved, notes: Sequence[str]) -> Metrics:
        """Measure both networks and compare them with the limits."""
        found, reference, account = solved.found, self.gate.reference, solved.start.account
        splits = self.evaluate.splits if isinstance(self.evaluate, DataEvaluator) else None
        lossless = account.notes if account is not None else ()
        refused = (f"Refused: {each}." for each in solved.candidates.refusals)
        facts = conclude(
            found,
            reference,
            self.limits,
            gate=self.gate,
            points=self.evaluate.points,
            lossless=account,
            others=solved.others,
        )
        if not facts["met"] and (note := solved.candidates.note()):
            facts["verdict"] = f"{facts['verdict']} {note}"
        took = self._latencies(original, solved.model)
        before = self._costs(original, reference.accuracy, "before", took)
        notes = [*self.evaluate.notes(original), *notes, *self._chance(original, before)]
        return Metrics(
            **facts,
            limits=self.limits.model_dump(),
            before=before,
            after=self._costs(solved.model, self._last(solved), "after", took),
            data=splits.description() if splits else "",
            selection_from_train=splits is not None and splits.selection_from_train,
            confirmation=None if solved.confirmation is None else asdict(solved.confirmation),
            lossless=account,
            notes=notes_of(found, [*notes, *lossless, *refused]),
        )

    def _chance(self, original: nn.Module, before: Costs) -> tuple[str, ...]:
        """A warning where the unpruned network is no better than guessing."""
        if not isinstance(self.evaluate, DataEvaluator):
            return ()
        name = "test" if before.test is not None else "selection"
        classes = class_count(original, self.evaluate.splits.selection)
        return chance_note(before.test or before.selection, classes, name=name)

    def _last(self, solved: Solved) -> float:
        """The score of the final network."""
        if solved.found.probe is not None:
            return solved.found.probe.accuracy
        account = solved.start.account
        if isinstance(self.evaluate, DataEvaluator) or account is None or not account.parameters:
            return self.gate.reference.accuracy
        return self.evaluate(solved.model).value  # equal predictions need not be an equal score

    def _costs(self, model: nn.Module, value: float, when: str, took: Latencies) -> Costs:
        """Sizes, operations and accuracy of a network, on the test set too where there is one."""
        if self.progress is not None:
            self.progress(f"counting operations, {when}", 0, 0)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        example = tree_map_only(Tensor, lambda tensor: tensor.to(device), self.example)
        measured = partial(
            costs_of,
            model,
            example,
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
        """Times of a forward pass of both networks, taken in turn; none where not asked for."""
        if not self.latency:
            return {}
        if self.progress is not None:
            self.progress("measuring latency", 0, 0)
        inputs = self.example if self.calibration is None else next(iter(self.calibration))
        networks = {"before": before, "after": after}
        return self.evaluate.processes.on_main(lambda: measure(networks, inputs))

    def _test(self, dataset: Dataset[Any], model: nn.Module, when: str) -> Accuracy | None:
        """Accuracy of a network on the test set."""
        assert isinstance(self.evaluate, DataEvaluator)
        stage = f"test set, {when}"
        found = self.evaluate.on(dataset, model, progress=self.progress, stage=stage)
        assert found.outcomes is not None
        return accuracy_of(found.value, len(found.outcomes))


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All figures of a run and its verdict, as ``metrics.json`` holds them.

    ``before`` is the network given and ``after`` the final one. ``lossless`` is what went between
    them without changing a prediction, before any policy (``None`` where that was not asked for).
    ``saving`` and ``required_saving`` are the policy's own: fractions of the parameter bytes that
    the lossless step left, ``before.parameter_bytes - lossless.parameter_bytes``. So is a limit on
    the saving; ``max_parameter_memory`` is the size of the final network in any case.

    ``drop`` and its one-sided ``bound`` are differences of mean outcomes on the selection set from
    the network given; ``bounded_by`` is ``accuracy``, ``saving``
    (the search stopped there), or ``rates`` (every target is at its highest probed rate).
    ``confirmation`` holds the figures on selection images that chose nothing, where there are any.
    ``others`` are the limits beside accuracy and parameter memory that were asked for.
    """

    met: bool
    verdict: str
    bounded_by: str
    saving: float
    required_saving: float
    drop: float
    bound: float | None
    limits: Mapping[str, Any]
    before: Costs
    after: Costs
    data: str
    selection_from_train: bool
    notes: tuple[str, ...]
    confirmation: Mapping[str, Any] | None = None
    lossless: LosslessRecord | None = None
    others: tuple[LimitOutcome, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "others": [each.to_dict() for each in self.others]}

    @classmethod
    def from_dict(cls, content: Any) -> Metrics:
        """Read what ``to_dict`` made; ``ValueError`` naming the fields of anything else."""
        return validated(cls, content)


def conclude(
    found: PolicyResult,
    reference: Reference,
    limits: Limits,
    *,
    gate: AccuracyGate,
    points: bool,
    lossless: LosslessRecord | None = None,
    others: Sequence[LimitOutcome] = (),
) -> dict[str, Any]:
    """Whether the limits are met, how far the search came, and which limit bound.

    All of it counts from the network of ``reference.parameter_bytes``, after the lossless step.
    Returns the fields ``met``, ``verdict``, ``bounded_by``, ``saving``, ``required_saving``,
    ``drop``, ``bound`` and ``others`` of ``Metrics``.
    """
    before = reference.parameter_bytes
    left = found.probe.parameter_bytes if found.probe else before
    required = limits.required_bytes(before)
    drop = found.verdict.drop if found.verdict else 0.0
    bound = found.verdict.bound if found.verdict else None
    bounded_by = "saving" if found.stopped else "accuracy" if found.accuracy_bound else "rates"
    met = before - left >= required and all(each.held for each in others)
    facts: dict[str, Any] = {
        "met": met,
        "bounded_by": bounded_by,
        "saving": 1 - left / before,
        "required_saving": required / before,
        "drop": drop,
        "bound": bound,
        "others": tuple(others),
    }
    cost = _cost(drop, bound if gate.kind == "bound" else None, gate, points=points)
    more = lossless is not None and lossless.parameters > 0
    nothing = f"Nothing{' more' if more else ''} was removed: {found.unconfirmed or _NO_CUT}."
    verdict = _verdict(facts, cost, nothing)
    if found.unconfirmed and not met:
        verdict += f" Nothing was confirmed: {found.unconfirmed}."
    return {**facts, "verdict": verdict}


def _cost(drop: float, bound: float | None, gate: AccuracyGate, *, points: bool) -> str:
    """The drop in words, such as ``a drop of 0.67 points (2 allowed)``; a bound is rounded up."""
    if points:
        lost, most = f"{100 * drop + 0.0:.2f} points", None if bound is None else above(100 * bound)
    else:
        lost, most = f"{drop + 0.0:.4g} in score", None if bound is None else f"{bound:.4g}"
    sure = "" if most is None else f", at {gate.level:.0%} confidence below {most}"
    allowed = gate.allowed * (100.0 if points else 1.0)
    return f"a drop of {lost}{sure} ({allowed:.4g} allowed)"


_NO_CUT = "no probed cut stays within the accuracy limit"
_WHY = {
    "saving": "stopped as soon as the saving was reached",
    "accuracy": "the accuracy limit bound",
    "rates": "no limit bound, every layer is at the last rate that is tried",
}


def _verdict(facts: Mapping[str, Any], cost: str, nothing: str) -> str:
    """Whether the limits are met, for which saving at which cost, and why no more: a sentence."""
    saved = f"{facts['saving']:.2%} of the parameter memory saved"
    asked = f" ({facts['required_saving']:.2%} asked)" if facts["required_saving"] > 0 else ""
    why = "; ".join([_WHY[facts["bounded_by"]], *map(str, facts["others"])])
    if facts["saving"] == 0 and facts["met"]:
        return nothing
    if facts["met"]:
        return f"Limits met: {saved}{asked} for {cost}; {why}."
    return (
        f"The limits cannot be met together: the best plan found has {saved}{asked} "
        f"for {cost}; {why}."
    )


def notes_of(found: PolicyResult, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Sentences for the report: those given, then which layers the policy left alone and why."""
    if not found.targets:
        return tuple(extra)
    left_out = [target for target in found.targets if not target.chosen]
    deselected = [f"{t.layer.group} is no target: {t.reason}." for t in left_out]
    if not left_out:
        deselected = [f"No layer was deselected: all {len(found.targets)} are targets."]
    return (*extra, *deselected)

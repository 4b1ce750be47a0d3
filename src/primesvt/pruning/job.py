"""One pruning run, stage by stage, on a copy of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from primesvt.calibration import CalibrationSet
from primesvt.channels import trace
from primesvt.channels.plan import Plan, describe_inputs
from primesvt.config import Constraints
from primesvt.distributed import ProcessGroup
from primesvt.evaluation.confidence import Outcomes
from primesvt.evaluation.evaluator import DataEvaluator, Evaluator, Measurement, Progress, telling
from primesvt.evaluation.recording import record_inputs
from primesvt.models.digest import config_of, model_digest
from primesvt.models.forward import first_samples
from primesvt.profiling.latency_table import LatencyTable
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.candidates import Candidates, find_candidates
from primesvt.pruning.choosing import choose
from primesvt.pruning.confirmation import Confirmation, confirmed
from primesvt.pruning.limits import limits_of
from primesvt.pruning.lossless import StartNetwork, remove_constant_channels, remove_unused
from primesvt.pruning.metrics import Conclusion, Metrics, Solved
from primesvt.pruning.policies import AccuracyGate, PolicyResult
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober, counting
from primesvt.pruning.result import steps_of
from primesvt.pruning.sensitivity import check_probed
from primesvt.pruning.settings import Settings
from primesvt.pruning.variants import NETWORKS
from primesvt.pruning.workbench import Method, inputs_of, memory_for_networks, prober_of, race_of

__all__ = ["Job"]


@dataclass(kw_only=True)
class Job:
    """The stages of a run: ``measure``, ``find``, ``begin``, ``solve``, ``conclude``.

    Args:
        model: the unpruned network, a copy that nobody else uses.
        evaluate: measures a network.
        constraints: the limits.
        settings: the method.
        table: probes made so far.
        example: inputs to trace with; seen in a call of the score, when not given.
        earlier: probes of another run to solve again from.
        calibration: inputs without labels for statistics; those of one call of the score, when not
            given.
        aside: selection images that no probe sees, to confirm the plan on.
        seed: of draws.
        memory_limit: bytes that networks measured together may take, with one batch.
        latency: measure how long both networks take; latencies: times so far, where it is limited.
        progress: called as ``progress(stage, done, total)``.
        notes: what to say beside the figures.
    """

    model: nn.Module
    evaluate: Evaluator
    constraints: Constraints
    settings: Settings
    table: ProbeTable
    earlier: ProbeTable | None = None
    example: tuple[Any, ...] = ()
    calibration: CalibrationSet | None = None
    aside: Dataset[Any] | None = None
    seed: int = 0
    memory_limit: int | None = None
    latency: bool = False
    latencies: LatencyTable = field(default_factory=LatencyTable)
    progress: Progress | None = None
    notes: tuple[str, ...] = ()
    _context: dict[str, Any] = field(default_factory=dict, init=False)
    _networks: int = field(default=NETWORKS, init=False)  # bytes, for those measured together

    @property
    def method(self) -> Method:
        """Importance, recovery and policy as they can be had."""
        return Method.of(self.settings, self.calibration)

    @property
    def processes(self) -> ProcessGroup:
        """Those at work on this run."""
        return self.evaluate.processes

    def context(self) -> Mapping[str, Any]:
        """Everything that a probe depends on beside the cut."""
        if not self._context:
            method = self.method
            looks = method.looks or self.settings.lossless
            self._context = {
                "model": model_digest(self.model),
                **self.evaluate.context(),
                "time_steps": getattr(self.model, "time_steps", None),
                "lossless": self.settings.lossless,
                "importance": method.importance,
                "recovery": method.recovery,
                "calibration": self.calibration.digest() if looks and self.calibration else None,
                "seed": self.seed if method.importance == "random" else None,
            }
        return self._context

    def measure(self) -> Reference:
        """The unpruned network, stored or measured now, with the limits checked against it.

        A score whose value is stored is called once more where only that shows an input.
        """
        self.processes.check_same(
            lambda: {"model": model_digest(self.model), **self.evaluate.context()}
        )
        measurement = self._watch() if self._must_watch() else None
        reference = self.table.reference
        self.table.check(self.context())
        if self.earlier is not None:
            self.earlier.check(self.context())
            reference = reference or self.earlier.reference
        if reference is None or not self.example:
            measurement = measurement or self._watch()
            if reference is not None and reference.accuracy != measurement.value:
                raise ValueError(
                    f"score gave {measurement.value:g} for the unpruned model and "
                    f"{reference.accuracy:g} before; it must give the same each time"
                )
            reference = reference or Reference(
                context=dict(self.context()),
                measurement=measurement,
                parameter_bytes=parameter_bytes(self.model),
            )
        self._gate(reference)
        self._stop_at(reference)  # both say what is wrong with a limit before anything is written
        return reference

    def find(self) -> tuple[StartNetwork, Candidates]:
        """Choose the groups that may be cut, and take out what changes no prediction."""
        chosen = self.settings
        sources = inputs_of(self.evaluate, self.calibration)
        start = remove_unused(self.model, sources[-1:], self.processes) if chosen.lossless else None
        model = self.model if start is None else start.model
        self._tell("tracing")
        graph = trace(model, self.example)
        candidates = find_candidates(
            model,
            graph,
            include=chosen.include,
            exclude=chosen.exclude,
            include_streams=chosen.include_streams,
            verify=chosen.verify,
            progress=self.progress,
        )
        if start is None:
            lean = StartNetwork.whole(model, graph, candidates.groups)
        else:
            self._tell("looking for silent channels")
            multiple = chosen.channel_multiple
            lean = remove_constant_channels(
                self.model, start, graph, candidates.groups, sources, multiple, self.processes
            )
        self._check(lean)
        self._networks = memory_for_networks(
            lean.model, self.example, self.evaluate, limit=self.memory_limit
        )
        return lean, candidates

    def _check(self, lean: StartNetwork) -> None:
        """Probes made before must be of the same lossless step: they are of what it leaves."""
        self._context["lossless_cuts"] = lean.removed
        groups = [group.name for group in lean.groups]
        self.processes.check_same(lambda: {**self.context(), "groups": groups})
        for table in (self.table, self.earlier):
            if table is not None:
                table.check(self.context())
        chosen = self.settings
        if self.earlier is not None and chosen.policy == "prime" and chosen.whole_curves:
            multiple = chosen.channel_multiple
            check_probed(self.earlier, lean.groups, chosen.pruning_rates, multiple)

    def begin(self, reference: Reference, lean: StartNetwork) -> None:
        """Write down what is known before the first probe; savings count from the lean network."""
        if self.table.reference is None:
            size = parameter_bytes(lean.model)
            reference = replace(reference, context=self.context(), parameter_bytes=size)
            self.table.start(reference)
        if self.earlier is not None:
            self.table.take(self.earlier)

    def check_probes(self) -> None:
        """Raise ``ValueError`` where the probes made so far belong to another question."""
        if self._must_watch():
            self._watch()
        self.table.check(self.context())

    def solve(self, lean: StartNetwork, candidates: Candidates) -> Solved:
        """Measure groups, choose widths, confirm them, and cut a copy as the plan says."""
        self._tell("calibrating")
        assert self.table.reference is not None
        gate = self._gate(self.table.reference)
        prober = prober_of(
            lean.model,
            lean.graph,
            lean.groups,
            method=self.method,
            evaluate=self.evaluate,
            table=self.table,
            calibration=self.calibration,
            seed=self.seed,
            race=race_of(self.settings, gate, self.evaluate),
            memory=self._networks,
        )
        limits = limits_of(
            self.constraints,
            lean,
            settings=self.settings,
            inputs=self.example if self.calibration is None else next(iter(self.calibration)),
            table=self.latencies,
            processes=self.processes,
            progress=self.progress,
        )
        walk = choose(
            prober,
            lean.groups,
            settings=self.settings,
            gate=gate,
            importance=self.method.importance,
            seed=self.seed,
            stop_at_bytes=self._stop_at(prober.reference),
            limits=limits,
            progress=counting(self.progress, self.table),
        )
        walk, confirmation = self._confirmed(walk, prober)
        smaller = prober.cut(walk.cuts)
        self.processes.broadcast_state(smaller, parameters=True)
        return Solved(
            walk=walk,
            plan=self._plan(walk, prober, lean),
            model=smaller,
            lean=lean,
            candidates=candidates,
            confirmation=confirmation,
            held=tuple(limit.at(walk.cuts) for limit in limits),
        )

    def _confirmed(
        self, walk: PolicyResult, prober: Prober
    ) -> tuple[PolicyResult, Confirmation | None]:
        """The walk as far as images that it has not seen confirm it."""
        if self.aside is None or not walk.choices:
            return walk, None
        aside, evaluate = self.aside, self.evaluate
        assert isinstance(evaluate, DataEvaluator)

        def outcomes(model: nn.Module) -> Outcomes:
            self._tell("confirming")
            found = evaluate.on(aside, model).outcomes
            assert found is not None
            return found

        gate = self._gate(prober.reference)
        return confirmed(walk, prober, gate, outcomes=outcomes, before=outcomes(self.model))

    def conclude(self, solved: Solved) -> Metrics:
        """Figures before and after; a test set is looked at here, this once."""
        assert self.table.reference is not None
        conclusion = Conclusion(
            evaluate=self.evaluate,
            constraints=self.constraints,
            gate=self._gate(self.table.reference),
            example=self.example,
            calibration=self.calibration,
            latency=self.latency,
            progress=self.progress,
        )
        return conclusion.metrics(self.model, solved, [*self.notes, *self.method.notes])

    def _must_watch(self) -> bool:
        """Only a call of the score can show inputs that the method asks for."""
        wants = self.settings.lossless or Method.of(self.settings, None).notes
        return bool(wants) and self.calibration is None

    def _watch(self) -> Measurement:
        """Measure the unpruned network, and note the inputs that it is given."""
        watched = record_inputs(self.model, telling(self.evaluate, self.progress))
        if not self.example and not watched.batches:
            raise ValueError(
                "score never called the model with an input, so nothing can be traced; "
                "give example_input="
            )
        self.example = self.example or first_samples(watched.batches[0])
        self.calibration = self.calibration or watched.calibration(self.model)
        return watched.measurement

    def _gate(self, reference: Reference) -> AccuracyGate:
        chosen, points = self.settings, self.evaluate.points
        allowed = self.constraints.allowed_drop(reference.accuracy, points=points)
        return AccuracyGate(
            kind=chosen.gate, allowed=allowed, reference=reference, level=chosen.level
        )

    def _stop_at(self, reference: Reference) -> int | None:
        before = reference.parameter_bytes
        smallest = before - self.constraints.required_bytes(before)
        return smallest if self.constraints.stop_at_saving else None

    def _plan(self, walk: PolicyResult, prober: Prober, lean: StartNetwork) -> Plan:
        steps, groups = steps_of(walk, prober, lean)
        return Plan(
            model_hash=str(self.context()["model"]),
            config=config_of(self.model),
            inputs=describe_inputs(first_samples(self.example, 1)),
            steps=steps,
            groups=groups,
        )

    def _tell(self, stage: str) -> None:
        if self.progress is not None:
            self.progress(stage, 0, 0)

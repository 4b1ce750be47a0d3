"""One pruning run, stage by stage, on a copy of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from primesvt.candidates import Candidates, find_candidates
from primesvt.channels import ChannelGraph, trace
from primesvt.constraints import Constraints
from primesvt.evaluation import DataEvaluator, Evaluator, Measurement, Progress
from primesvt.fingerprint import config_of, model_digest
from primesvt.importance import find_importance
from primesvt.memory import parameter_bytes
from primesvt.metrics import Accuracy, Costs, Metrics, accuracy_of, conclude, costs_of, notes_of
from primesvt.plan import Plan, Step, describe_inputs
from primesvt.policies import Gate, Prime, Walk
from primesvt.probes import ProbeTable, Reference
from primesvt.sensitivity import Bench, check_probed, probe_layers
from primesvt.settings import Settings

__all__ = ["Job", "Solved", "first_samples"]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What the walk took, the plan that says so, and the smaller model."""

    walk: Walk
    plan: Plan
    model: nn.Module
    candidates: Candidates


@dataclass(kw_only=True)
class Job:
    """The stages of a run, in this order: ``measure``, ``find``, ``solve``, ``conclude``.

    Args:
        model: the unpruned network, a copy that nobody else uses.
        evaluate: measures a network.
        constraints: the limits.
        settings: the method.
        table: probes made so far.
        example: inputs to trace with; seen in a call of the score, when not given.
        earlier: probes of another run to solve again from; no layer is probed anew then.
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
    progress: Progress | None = None
    notes: tuple[str, ...] = ()
    _context: dict[str, Any] = field(default_factory=dict, init=False)

    def context(self) -> Mapping[str, Any]:
        """Everything that a probe depends on beside the cut."""
        if not self._context:
            self._context = {
                "model": model_digest(self.model),
                **self.evaluate.context(),
                "time_steps": getattr(self.model, "time_steps", None),
                "importance": self.settings.importance,
                "recovery": self.settings.recovery,
            }
        return self._context

    def measure(self) -> Reference:
        """The unpruned network, stored or measured now, with the limits checked against it.

        A score whose value is stored is called once more where only that shows an input.
        """
        reference = self.table.reference
        self.table.check(self.context())
        if self.earlier is not None:
            self.earlier.check(self.context())
            reference = reference or self.earlier.reference
        if reference is None or not self.example:
            measurement = self._watch()
            if reference is not None and reference.accuracy != measurement.value:
                raise ValueError(
                    f"score gave {measurement.value:g} for the unpruned model and "
                    f"{reference.accuracy:g} before; it must give the same each time"
                )
            reference = reference or Reference(
                context=self.context(),
                measurement=measurement,
                parameter_bytes=parameter_bytes(self.model),
            )
        self._policy(reference)
        return reference

    def find(self) -> tuple[ChannelGraph, Candidates]:
        """Trace the network and choose the groups that may be cut."""
        self._tell("tracing")
        graph = trace(self.model, self.example)
        chosen = self.settings
        candidates = find_candidates(
            self.model,
            graph,
            include=chosen.include,
            exclude=chosen.exclude,
            include_streams=chosen.include_streams,
            verify=chosen.verify,
            progress=self.progress,
        )
        if self.earlier is not None:
            check_probed(self.earlier, candidates.groups, chosen.rates)
        return graph, candidates

    def begin(self, reference: Reference) -> None:
        """Write down what is known before the first probe."""
        if self.table.reference is None:
            self.table.start(reference)
        if self.earlier is not None:
            self.table.take(self.earlier)

    def solve(self, graph: ChannelGraph, candidates: Candidates) -> Solved:
        """Probe the layers, walk, and cut a copy as the plan says."""
        bench = Bench(
            model=self.model,
            graph=graph,
            evaluate=self.evaluate,
            table=self.table,
            importance=find_importance(self.settings.importance),
        )
        layers = probe_layers(
            bench,
            candidates.groups,
            rates=self.settings.rates,
            order=self.settings.order,
            progress=self.progress,
        )
        walk = self._policy(bench.reference).walk(layers, bench.probe)
        return Solved(
            walk=walk,
            plan=self._plan(walk, bench),
            model=bench.cut(walk.cuts),
            candidates=candidates,
        )

    def conclude(self, solved: Solved) -> Metrics:
        """Figures before and after; a test set is looked at here, this once."""
        reference = self.table.reference
        assert reference is not None
        walk = solved.walk
        last = walk.choices[-1].probe.accuracy if walk.choices else reference.accuracy
        refused = (f"Refused: {each}." for each in solved.candidates.refusals)
        splits = self.evaluate.splits if isinstance(self.evaluate, DataEvaluator) else None
        gate = self._policy(reference).gate
        return Metrics(
            **conclude(walk, reference, self.constraints, gate=gate, points=self.evaluate.points),
            limits=asdict(self.constraints),
            before=self._costs(self.model, reference.accuracy, "before"),
            after=self._costs(solved.model, last, "after"),
            data=splits.description() if splits else "",
            selection_from_train=splits is not None and splits.selection_from_train,
            notes=notes_of(walk, [*self.evaluate.notes(self.model), *self.notes, *refused]),
        )

    def _watch(self) -> Measurement:
        """Measure the unpruned network, and note the first input that it is given."""
        seen: list[tuple[Any, ...]] = []

        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not seen:
                seen.append(args)

        handle = self.model.register_forward_pre_hook(note)
        try:
            measurement = _telling(self.evaluate, self.progress)(self.model)
        finally:
            handle.remove()
        if not self.example and not (seen and seen[0]):
            raise ValueError(
                "score never called the model with an input, so nothing can be traced; "
                "give example_input="
            )
        self.example = self.example or first_samples(seen[0])
        return measurement

    def _policy(self, reference: Reference) -> Prime:
        constraints, chosen = self.constraints, self.settings
        allowed = constraints.allowed_drop(reference.accuracy, points=self.evaluate.points)
        smallest = reference.parameter_bytes - constraints.required_bytes(reference.parameter_bytes)
        return Prime(
            gate=Gate(kind=chosen.gate, allowed=allowed, reference=reference, level=chosen.level),
            reading=chosen.reading,
            target_threshold=chosen.target_threshold,
            stop_at_bytes=smallest if constraints.stop_at_saving else None,
            progress=self.progress,
        )

    def _plan(self, walk: Walk, bench: Bench) -> Plan:
        steps = tuple(
            Step(
                group=choice.layer.group,
                rate=choice.point.rate,
                before=(choice.layer.positions, choice.layer.size),
                after=(choice.layer.positions, choice.point.kept),
                accuracy=choice.probe.accuracy,
                drop=choice.verdict.drop,
                bound=choice.verdict.bound,
                saving=choice.probe.saving,
                parameter_bytes=choice.probe.parameter_bytes,
            )
            for choice in walk.choices
        )
        groups = {
            name: tuple(map(tuple, bench.graph.to_original(name, bench.kept(name, count))))
            for name, count in walk.cuts.items()
        }
        return Plan(
            model_hash=str(self.context()["model"]),
            config=config_of(self.model),
            inputs=describe_inputs(first_samples(self.example, 1)),
            steps=steps,
            groups=groups,
        )

    def _costs(self, model: nn.Module, value: float, when: str) -> Costs:
        reference = self.table.reference
        assert reference is not None
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        example = tree_map_only(Tensor, lambda tensor: tensor.to(device), self.example)
        if not isinstance(self.evaluate, DataEvaluator):
            return costs_of(model, example, score=value)
        found = reference.measurement.outcomes
        splits = self.evaluate.splits
        return costs_of(
            model,
            example,
            selection=accuracy_of(value, None if found is None else len(found)),
            test=None if splits.test is None else self._test(splits.test, model, when),
        )

    def _test(self, dataset: Dataset[Any], model: nn.Module, when: str) -> Accuracy | None:
        assert isinstance(self.evaluate, DataEvaluator)
        stage = f"test set, {when}"
        found = self.evaluate.on(dataset, model, progress=self.progress, stage=stage)
        assert found.outcomes is not None
        return accuracy_of(found.value, len(found.outcomes))

    def _tell(self, stage: str) -> None:
        if self.progress is not None:
            self.progress(stage, 0, 0)


def _telling(evaluate: Evaluator, progress: Progress | None) -> Evaluator:
    """The evaluator that reports on a long first measurement; probes report as a whole."""
    if isinstance(evaluate, DataEvaluator):
        return replace(evaluate, progress=progress)
    return evaluate


def first_samples(args: tuple[Any, ...], samples: int = 2) -> tuple[Any, ...]:
    """The first samples of a batch, which are enough to trace with; several inputs stay whole.

    Example:
        >>> first_samples((torch.zeros(64, 1, 8, 8),))[0].shape
        torch.Size([2, 1, 8, 8])
    """
    args = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), args)
    if len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim > 1:
        return (args[0][:samples],)
    return args

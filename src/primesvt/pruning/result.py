"""What a finished search gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from primesvt.channels import Refusal
from primesvt.channels.plan import Kept, Plan, PlanStep
from primesvt.checkpoint.folder import save_model
from primesvt.pruning.lossless import StartNetwork
from primesvt.pruning.metrics import Metrics
from primesvt.pruning.policies import PolicyResult
from primesvt.pruning.probe_table import ProbeTable
from primesvt.pruning.prober import Prober
from primesvt.pruning.run_folder import RunFolder

__all__ = ["PruneResult", "steps_of"]


def steps_of(
    walk: PolicyResult, prober: Prober, lean: StartNetwork
) -> tuple[tuple[PlanStep, ...], dict[str, Kept]]:
    """Steps of a plan, those of the lossless step first, and the channels that each group keeps."""
    groups: dict[str, Kept] = {
        name: tuple(tuple(row) for row in prober.graph.to_original(name, prober.kept(name, count)))
        for name, count in walk.cuts.items()
    }
    steps = lean.steps(_steps(walk, prober))
    return steps, {s.group: groups.get(s.group) or lean.kept(s.group) for s in steps}


def _steps(walk: PolicyResult, prober: Prober) -> tuple[PlanStep, ...]:
    """The cuts of a walk, with the bytes that each leaves."""
    before = prober.reference.parameter_bytes
    steps, cuts = [], dict[str, int]()
    for number, choice in enumerate(walk.choices, start=1):
        cuts[choice.group] = choice.kept
        last = number == len(walk.choices)
        probe = choice.probe or (walk.probe if last else None)
        verdict = choice.verdict or (walk.verdict if last else None)
        left = before - prober.bytes_saved(cuts)
        steps.append(
            PlanStep(
                group=choice.group,
                rate=choice.rate,
                before=(choice.positions, choice.size),
                after=(choice.positions, choice.kept),
                accuracy=probe.accuracy if probe else None,
                drop=verdict.drop if verdict else None,
                bound=verdict.bound if verdict else None,
                saving=1 - left / before,
                parameter_bytes=left,
                recovery=prober.recovery.describe(choice.group),
            )
        )
    return tuple(steps)


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What came of a run.

    Attributes:
        model: the smaller model, in evaluation mode.
        plan: what was cut, in original indices.
        metrics: figures before and after, and whether the limits are met.
        refusals: groups left alone because cutting them would not be exact.
    """

    model: nn.Module
    plan: Plan
    metrics: Metrics
    refusals: tuple[Refusal, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict, repr=False)
    probes: ProbeTable = field(default_factory=ProbeTable, repr=False, compare=False)

    @property
    def met(self) -> bool:
        """All limits are met."""
        return self.metrics.met

    @property
    def verdict(self) -> str:
        """One sentence: met and which limit bound, or how far the best plan came."""
        return self.metrics.verdict

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: recipe, probes, plan, figures and the model, without pickle.

        Of several processes only one should call it.
        """
        run = RunFolder(folder, self.recipe)
        with run.locked():
            run.create()
            self.probes.write(run.path / "sensitivity.jsonl")
            _write_model(run, self.plan, self.model)
            return _finish(run, self.metrics)


def _write_model(run: RunFolder, plan: Plan, model: nn.Module) -> None:
    def write() -> None:
        plan.save(run.plan)
        save_model(model, run.model, plan=plan)

    run.processes.on_main(write)


def _finish(run: RunFolder, metrics: Metrics) -> Path:
    """Write the figures, which mark the run as complete, and the report made from them."""
    from primesvt.report import write_report

    run.finish(metrics)
    run.processes.on_main(lambda: write_report(run.path))
    return run.path

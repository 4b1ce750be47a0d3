"""What ``primesvt.prune`` returns, and how a run is written to its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from primesvt.channels import Refusal
from primesvt.channels.plan import Kept, Plan, PlanStep
from primesvt.checkpoint.folder import save_model
from primesvt.config import PruneConfig
from primesvt.pruning.lossless import StartNetwork
from primesvt.pruning.metrics import Metrics
from primesvt.pruning.policies import PolicyResult
from primesvt.pruning.probe_table import ProbeTable
from primesvt.pruning.prober import Prober
from primesvt.pruning.run_folder import RunFolder

__all__ = ["PruneResult", "finish_run", "steps_of", "write_model"]


def steps_of(
    found: PolicyResult, prober: Prober, start: StartNetwork
) -> tuple[tuple[PlanStep, ...], dict[str, Kept]]:
    """The steps of the plan, lossless ones first, and the channels that each group keeps."""
    groups: dict[str, Kept] = {
        name: tuple(tuple(row) for row in prober.graph.to_original(name, prober.kept(name, count)))
        for name, count in found.cuts.items()
    }
    before = prober.reference.parameter_bytes
    made, cuts = [], dict[str, int]()
    for number, choice in enumerate(found.choices, start=1):
        cuts[choice.group] = choice.kept
        last = number == len(found.choices)
        probe = choice.probe or (found.probe if last else None)
        verdict = choice.verdict or (found.verdict if last else None)
        left = before - prober.bytes_saved(cuts)
        made.append(
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
    steps = start.steps(made)
    return steps, {s.group: groups.get(s.group) or start.kept(s.group) for s in steps}


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """The outcome of ``primesvt.prune``: the smaller model, its plan and all figures.

    Attributes:
        model: the smaller model, in evaluation mode.
        plan: what was cut, in original indices.
        metrics: figures before and after, and whether the limits are met.
        config: every option of the run.
        probes: every network that was measured.
        refusals: groups left alone because cutting them would not be exact.
    """

    model: nn.Module
    plan: Plan
    metrics: Metrics
    config: PruneConfig = field(repr=False)
    probes: ProbeTable = field(repr=False, compare=False)
    refusals: tuple[Refusal, ...] = ()

    @property
    def met(self) -> bool:
        """Whether all limits are met."""
        return self.metrics.met

    @property
    def verdict(self) -> str:
        """One sentence: met and which limit bound, or how far the best plan came."""
        return self.metrics.verdict

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: recipe, probes, plan, figures and the model, without pickle.

        Of several processes only one should call it.
        """
        run = RunFolder(folder, self.config)
        with run.locked():
            run.create()
            self.probes.write(run.path / "sensitivity.jsonl")
            write_model(run, self.plan, self.model)
            return finish_run(run, self.metrics)


def write_model(run: RunFolder, plan: Plan, model: nn.Module) -> None:
    """Write the plan and the pruned model to the run folder."""

    def write() -> None:
        plan.save(run.plan)
        save_model(model, run.model, plan=plan)

    run.processes.on_main(write)


def finish_run(run: RunFolder, metrics: Metrics) -> Path:
    """Write the figures, which mark the run as complete, and the report made from them."""
    from primesvt.report import write_report

    run.finish(metrics)
    run.processes.on_main(lambda: write_report(run.path))
    return run.path

"""The main job: prune a pre-trained spiking vision transformer within a user's limits."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from primesvt.artifact import load, save_model
from primesvt.calibration import Calibration, calibration_of
from primesvt.channels import Refusal
from primesvt.channels.copies import state_tensors, unwrap
from primesvt.confirmation import divide
from primesvt.constraints import Constraints
from primesvt.data import Splits, check_classes, load_data
from primesvt.evaluation import (
    DataEvaluator,
    Evaluator,
    Progress,
    Score,
    ScoreEvaluator,
    resolve_device,
)
from primesvt.job import Job
from primesvt.metrics import Metrics
from primesvt.models import SpikingViT, reset
from primesvt.plan import Plan
from primesvt.probes import ProbeTable
from primesvt.runfolder import RunFolder, stored_probes
from primesvt.settings import Settings
from primesvt.watching import first_samples

__all__ = ["PruneResult", "prune"]

CALIBRATION_BATCH = 64
Data = Splits | Dataset[Any] | DataLoader[Any] | Mapping[str, Any] | str | Path


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
        """Write a run folder: recipe, probes, plan, figures and the model, without pickle."""
        run = RunFolder(folder, self.recipe)
        run.create()
        self.probes.write(run.path / "sensitivity.jsonl")
        _write_model(run, self.plan, self.model)
        return _finish(run, self.metrics)


def prune(
    model: nn.Module,
    *,
    data: Data | None = None,
    score: Score | None = None,
    example_input: Any = None,
    calibration: Iterable[Any] | Tensor | None = None,
    constraints: Constraints | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    policy: str = "allocate",
    importance: str = "obs",
    recovery: str = "refit",
    gate: str = "bound",
    confirm: bool = True,
    lossless: bool = True,
    exact: bool = False,
    race_error: float = 0.05,
    reading: str = "A",
    order: str = "producer",
    target_threshold: float = 0.0,
    level: float = 0.95,
    rates: Sequence[float] | None = None,
    preset: str | None = None,
    include_streams: bool = False,
    verify: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    from_run: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a model within the limits; the model given is not changed.

    Args:
        model: any spiking network; its neurons are reset, then a copy is worked on.
        data: what to measure accuracy on: ``Splits``, or anything that ``load_data`` takes.
        score: instead of ``data``, model -> number (higher is better), or a vector of per-sample
            outcomes, which allows pairing; must be deterministic. Limits are in its own unit.
        example_input: an input (or a tuple of them) to trace with; taken from ``calibration``,
            ``data`` or one call of ``score`` when not given.
        calibration: inputs without labels, as a tensor, a Dataset or batches; taken from ``data``,
            or from one call of ``score``, when not given.
        constraints: the limits; 3 points and 25 % when not given.
        include: globs over group names; only these groups.
        exclude: globs over group names; not these.
        policy: ``allocate`` (the rates of all groups together) or ``prime`` (the paper's walk).
        importance: ranks channels: ``obs``, ``activity``, ``taylor``, ``l2`` (the paper's), ``l1``,
            ``l2_folded``, ``firing_rate``, ``membrane`` or ``random``.
        recovery: ``refit`` (least squares, then batch norm), ``bn`` or ``none`` (the paper's).
        gate: ``point`` (the measured drop) or ``bound`` (its one-sided confidence bound).
        confirm: with ``bound``, confirm the plan on selection images set aside, where there are
            enough of them.
        lossless: remove first what changes no prediction: channels silent or constant on all
            calibration and selection inputs, parameters that no forward reads, a distillation head
            that the head can take in. Counted apart; savings and limits count from there.
        exact: measure every network on all selection images. Otherwise those that show early that
            the gate will refuse them see no more (``primesvt.racing``).
        race_error: chance of rejecting early a network that would have passed.
        reading: ``A`` or ``B``, see docs/method.md.
        order: what makes a layer large: ``producer`` or ``group``.
        target_threshold: targets reach this fraction of the largest benefit score.
        level: confidence level of the bound.
        rates: pruning rates to probe; 0.1 to 0.9 when not given, for ``allocate`` also 0.95 and
            0.98.
        preset: ``paper`` or ``best``: a set of these choices (docs/method.md).
        include_streams: also prune residual streams.
        verify: check first, on a copy, that every group can be cut exactly.
        seed: draws the sets out of ``data``, and the images set aside.
        batch_size: images per forward pass.
        workers: processes that load images.
        device: where to compute; where the model is, when not given.
        out: run folder; a run that was stopped there goes on, one that has ended is returned.
        from_run: run folder whose layer probes are used again: none is made new.
        recipe: what ``recipe.yaml`` says; these arguments when not given.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: a mistake in the input, in one line that says what to do.

    Example:
        >>> from primesvt.models import create_model
        >>> result = prune(
        ...     create_model("sdt_v2_digits", pretrained=True),
        ...     data="digits",
        ...     constraints=Constraints(max_accuracy_drop=2, min_memory_saving=None),
        ...     include=["*.block4_0.mlp.fc1"],
        ...     rates=[0.5],
        ... )
        >>> result.met, result.plan.steps[0].before, result.plan.steps[0].after
        (True, (1, 160), (1, 80))

    Source: PrimeSVT (arXiv 2606.03428); our reading of it is in docs/method.md.
    """
    constraints = constraints or Constraints()
    settings = Settings(
        policy=policy,
        importance=importance,
        recovery=recovery,
        gate=gate,
        confirm=confirm,
        lossless=lossless,
        exact=exact,
        race_error=race_error,
        reading=reading,
        order=order,
        target_threshold=target_threshold,
        level=level,
        rates=rates,
        include=include,
        exclude=exclude,
        include_streams=include_streams,
        verify=verify,
    ).with_preset(preset)
    original = unwrap(model)
    _check_no_nan(original)
    place = resolve_device(device, original)
    earlier = stored_probes(from_run) if from_run is not None else None
    evaluate = _evaluator(original, data, score, place, seed, batch_size, workers)
    evaluate, aside, divided = _set_aside(evaluate, settings, constraints, earlier, seed)
    asked = asdict(settings) | {"rates": settings.pruning_rates}
    arguments = {"seed": seed, **asked, "constraints": asdict(constraints)}
    recipe = arguments if recipe is None else recipe
    folder = RunFolder(out, recipe) if out is not None else None
    job = Job(
        model=_working_copy(original, place),
        evaluate=evaluate,
        constraints=constraints,
        settings=settings,
        table=folder.probes() if folder else ProbeTable(),
        earlier=earlier,
        notes=(*divided, *_again(from_run)),
        example=_example(example_input, calibration, evaluate),
        calibration=_calibration(calibration, evaluate, place, batch_size),
        aside=aside,
        seed=seed,
        progress=progress,
    )
    done = folder.metrics() if folder else None
    if folder is not None and done is not None:
        return _finished(folder, done, job, recipe)
    return _run(job, folder, recipe)


def _evaluator(
    model: nn.Module,
    data: Data | None,
    score: Score | None,
    device: torch.device,
    seed: int,
    batch_size: int,
    workers: int,
) -> Evaluator:
    if (data is None) == (score is None):
        raise ValueError("give either data= (a labelled set) or score= (a callable), not both")
    if score is not None:
        return ScoreEvaluator(score=score, device=device)
    assert data is not None
    splits = _in_random_order(_splits(data, model, seed), seed)
    return DataEvaluator(splits=splits, batch_size=batch_size, device=device, workers=workers)


def _in_random_order(splits: Splits, seed: int) -> Splits:
    """Selection images in one order drawn by the seed, which early decisions rest on."""
    size = len(cast(Sized, splits.selection))
    order = np.random.default_rng([seed, size]).permutation(size)
    return replace(splits, selection=Subset(splits.selection, order.tolist()))


def _again(run: str | Path | None) -> tuple[str, ...]:
    return (f"Solved again from the probes of {run}.",) if run is not None else ()


def _set_aside(
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
    if not isinstance(evaluate, DataEvaluator) or not wanted:
        return evaluate, None, ()
    limit = constraints.max_accuracy_drop / 100
    splits, aside, told = divide(evaluate.splits, limit, seed=seed)
    smaller = replace(evaluate, splits=splits)
    if aside is not None and earlier is not None and earlier.reference is not None:
        before = earlier.reference.context.get("selection_set")
        if before == evaluate.context()["selection_set"]:
            return evaluate, None, ("The earlier probes saw all selection images: none confirms.",)
    return smaller, aside, (told,)


def _calibration(
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


def _run(job: Job, folder: RunFolder | None, recipe: Mapping[str, Any]) -> PruneResult:
    """All stages; the folder is made once nothing can be wrong with the input."""
    reference = job.measure()
    lean, candidates = job.find()
    if folder is not None:
        folder.create()
    job.begin(reference, lean)
    solved = job.solve(lean, candidates)
    if folder is not None:  # before the test set is touched: nothing measured can be lost then
        _write_model(folder, solved.plan, solved.model)
    result = PruneResult(
        model=solved.model,
        plan=solved.plan,
        metrics=job.conclude(solved),
        refusals=candidates.refusals,
        recipe=recipe,
        probes=job.table,
    )
    if folder is not None:
        _finish(folder, result.metrics)
    return result


def _write_model(run: RunFolder, plan: Plan, model: nn.Module) -> None:
    plan.save(run.plan)
    save_model(model, run.model, plan=plan)


def _finish(run: RunFolder, metrics: Metrics) -> Path:
    """Write the figures, which mark the run as complete, and the report made from them."""
    from primesvt.report import write_report

    run.finish(metrics)
    write_report(run.path)
    return run.path


def _finished(
    folder: RunFolder, metrics: Metrics, job: Job, recipe: Mapping[str, Any]
) -> PruneResult:
    """The result of a run that has ended; the test set is not looked at again."""
    job.check_probes()
    _finish(folder, metrics)
    plan = Plan.load(folder.plan)
    into = None if plan.config is not None else job.model
    device = next((p.device for p in job.model.parameters()), torch.device("cpu"))
    smaller = load(folder.model, into=into).to(device)
    return PruneResult(model=smaller, plan=plan, metrics=metrics, recipe=recipe, probes=job.table)


def _check_no_nan(model: nn.Module) -> None:
    """Norms, probes and checks mean nothing beside a NaN."""
    for name, tensor in state_tensors(model).items():
        if bool(tensor.isnan().any()):
            raise ValueError(
                f"'{name}' holds NaN: give the weights of a training that did not diverge"
            )


def _working_copy(model: nn.Module, device: torch.device) -> nn.Module:
    reset(model)
    return copy.deepcopy(model).to(device).eval()


def _splits(data: Data, model: nn.Module, seed: int) -> Splits:
    """The sets, prepared as the model wants its images."""
    from primesvt.checkpoint import provenance_of

    if isinstance(model, SpikingViT) and isinstance(data, str | Path):
        made = provenance_of(model)
        splits = load_data(
            data,
            data_config=made.data,
            time_steps=model.time_steps,
            seed=seed,
            held_out=made.held_out,
        )
    else:
        splits = load_data(data, seed=seed)
    if isinstance(model, SpikingViT):
        check_classes(splits, model.config.num_classes)
    return splits


def _example(
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

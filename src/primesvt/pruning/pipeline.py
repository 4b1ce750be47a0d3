"""The main job: prune a pre-trained spiking vision transformer within a user's limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from primesvt.checkpoint.folder import load
from primesvt.config import Constraints
from primesvt.distributed import ProcessGroup, resolve_device
from primesvt.evaluation.evaluator import Progress, Score, evaluator_for, example_for
from primesvt.models.forward import check_no_nan, unwrap
from primesvt.profiling.latency_table import LatencyTable
from primesvt.pruning.inputs import Data, calibration_for, memory_bytes, set_aside, working_copy
from primesvt.pruning.job import Job
from primesvt.pruning.limits import check_limits, limit_notes
from primesvt.pruning.metrics import Metrics
from primesvt.pruning.probe_table import ProbeTable
from primesvt.pruning.result import PruneResult, _finish, _write_model
from primesvt.pruning.run_folder import RunFolder, stored_probes
from primesvt.pruning.settings import Settings

__all__ = ["prune"]


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
    full_curves: bool = False,
    reading: str = "A",
    order: str = "producer",
    target_threshold: float = 0.0,
    level: float = 0.95,
    rates: Sequence[float] | None = None,
    channel_multiple: int = 1,
    preset: str | None = None,
    include_streams: bool = False,
    verify: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    memory_limit: str | int | None = None,
    latency: bool = False,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    from_run: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a model within the limits; the model given is not changed.

    Started by ``torchrun`` or ``accelerate launch``, several processes measure together; only the
    first writes and tells, and all return the same (docs/method.md).

    Args:
        model: any spiking network; its neurons are reset, then a copy is worked on.
        data: what to measure accuracy on: ``Splits``, or anything that ``load_data`` takes.
        score: instead of ``data``, model -> number (higher is better), or a vector of per-sample
            outcomes, which allows pairing; must be deterministic. Limits are in its own unit. Each
            of several processes calls it, and what it gives the first one counts.
        example_input: an input (or a tuple of them) to trace with; taken from ``calibration``,
            ``data`` or one call of ``score`` when not given.
        calibration: inputs without labels, as a tensor, a Dataset or batches; taken from ``data``,
            or from one call of ``score``, when not given.
        constraints: the limits; 3 points and 25 % when not given.
        include: globs over group names; only these groups.
        exclude: globs over group names; not these.
        policy: ``allocate`` (the rates of all groups together) or ``prime`` (the paper's walk); to
            compare with: ``psvit``, ``uniform``, ``global`` or ``random`` (docs/method.md).
        importance: ranks channels: ``obs``, ``activity``, ``taylor``, ``l2`` (the paper's), ``l1``,
            ``l2_folded``, ``firing_rate``, ``membrane`` or ``random``.
        recovery: ``refit`` (least squares, then batch norm), ``bn`` or ``none`` (the paper's).
        gate: ``point`` (the measured drop) or ``bound`` (its one-sided confidence bound).
        confirm: with ``bound``, confirm the plan on selection images set aside, where there are
            enough of them.
        lossless: remove first what changes no prediction: channels silent or constant on all
            calibration and selection inputs, parameters that no forward reads, a distillation head
            that the head can take in. Counted apart; savings and limits count from there.
        exact: measure every rate of every layer, and every network on all selection images.
            Otherwise ``prime`` probes no layer alone where the walk can do without, and networks
            that show early that the gate will refuse them see no more images.
        race_error: chance of rejecting early a network that would have passed.
        full_curves: of ``prime``: measure every rate of every layer.
        reading: ``A`` or ``B``, see docs/method.md.
        order: what makes a layer large: ``producer`` or ``group``.
        target_threshold: targets reach this fraction of the largest benefit score.
        level: confidence level of the bound.
        rates: pruning rates; 0.1 to 0.9 when not given, for ``allocate`` also 0.95 and 0.98, for
            ``uniform``, ``global`` and ``random`` every percent up to 0.98.
        channel_multiple: kept channels are multiples of it, per layer or attention head.
        preset: ``paper`` or ``best``: a set of these choices (docs/method.md).
        include_streams: also prune residual streams.
        verify: check first, on a copy, that every group can be cut exactly.
        seed: draws the sets out of ``data``, and the images set aside.
        batch_size: images per forward pass.
        workers: processes that load images.
        memory_limit: what networks measured together may take, with the activations of one batch:
            bytes, or a size such as ``"4GB"``; when not given, 2 GB for the networks.
        latency: measure at the end how long the networks before and after take, in turn (seconds;
            the one figure that another run does not repeat).
        device: where to compute; where the model is, when not given.
        out: run folder; a run that was stopped there goes on, one that has ended is returned. It
            is this process's until the run ends.
        from_run: run folder whose probes are used again: of ``prime``, no layer is probed anew but
            those that were rejected early under a stricter limit.
        recipe: what ``recipe.yaml`` says; these arguments when not given.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: a mistake in the input, in one line that says what to do.
        FolderInUse: another process is writing to ``out``; a ``ValueError`` too.

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
        full_curves=full_curves,
        reading=reading,
        order=order,
        target_threshold=target_threshold,
        level=level,
        rates=rates,
        channel_multiple=channel_multiple,
        include=include,
        exclude=exclude,
        include_streams=include_streams,
        verify=verify,
    ).with_preset(preset)
    check_limits(constraints, settings)
    original = unwrap(model)
    check_no_nan(original)
    ProcessGroup.take_gpu()
    processes = ProcessGroup.start(resolve_device(device, original))
    place, progress = processes.device, progress if processes.main else None
    asked = asdict(settings) | {"rates": settings.pruning_rates}
    named = str(data) if isinstance(data, str | Path) else None
    arguments = {"data": named, "seed": seed, **asked, "constraints": asdict(constraints)}
    given = {"out": out is None, "from_run": from_run is None, "latency": latency}
    processes.check_same(lambda: arguments | given)
    earlier = None
    if from_run is not None:
        earlier = processes.on_main(lambda: stored_probes(from_run))
    again = (f"Solved again from the probes of {from_run}.",) if from_run is not None else ()
    evaluate = evaluator_for(original, data, score, place, seed, batch_size, workers, processes)
    evaluate, aside, divided = set_aside(evaluate, settings, constraints, earlier, seed)
    recipe = arguments if recipe is None else recipe
    folder = RunFolder(out, recipe, processes) if out is not None else None
    with nullcontext() if folder is None else folder.locked():
        job = Job(
            model=working_copy(original, place),
            evaluate=evaluate,
            constraints=constraints,
            settings=settings,
            table=folder.probes() if folder else ProbeTable(),
            earlier=earlier,
            notes=(*divided, *again, *limit_notes(constraints, settings)),
            example=example_for(example_input, calibration, evaluate),
            calibration=calibration_for(calibration, evaluate, place, batch_size),
            aside=aside,
            seed=seed,
            memory_limit=memory_bytes(memory_limit),
            latency=latency,
            latencies=folder.latencies() if folder else LatencyTable(),
            progress=progress,
        )
        done = folder.metrics() if folder else None
        if folder is not None and done is not None:
            return _finished(folder, done, job, recipe)
        return _run(job, folder, recipe)


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
        metrics=job.processes.broadcast(job.conclude(solved)),
        refusals=candidates.refusals,
        recipe=recipe,
        probes=job.table,
    )
    if folder is not None:
        _finish(folder, result.metrics)
    return result


def _finished(
    folder: RunFolder, metrics: Metrics, job: Job, recipe: Mapping[str, Any]
) -> PruneResult:
    """The result of a run that has ended; the test set is not looked at again."""
    job.check_probes()
    _finish(folder, metrics)
    plan = folder.stored_plan()
    into = None if plan.config is not None else job.model
    device = next((p.device for p in job.model.parameters()), torch.device("cpu"))
    with folder.stored_model() as place:
        smaller = load(place, into=into).to(device)
    return PruneResult(model=smaller, plan=plan, metrics=metrics, recipe=recipe, probes=job.table)

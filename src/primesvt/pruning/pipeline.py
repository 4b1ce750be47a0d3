"""``primesvt.prune``: from a pre-trained model and limits to a smaller model and its plan."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from primesvt._files import check_place
from primesvt._guard import random_state_kept
from primesvt.calibration import ActivationStatistics
from primesvt.channels import trace
from primesvt.channels.graph import Ids
from primesvt.channels.plan import Plan, describe_inputs
from primesvt.channels.rewriting import describe_rewrites, rewrite_notes
from primesvt.channels.verification import verify_cut
from primesvt.checkpoint.folder import extra_state, load
from primesvt.checkpoint.load import open_model, own_data
from primesvt.config import Limits, PruneConfig, PruneOptions, parse_overrides
from primesvt.distributed import ProcessGroup, resolve_device
from primesvt.evaluation.confidence import Outcomes
from primesvt.evaluation.divergence import OutputDivergence
from primesvt.evaluation.evaluator import (
    DataEvaluator,
    Evaluator,
    Progress,
    Score,
    evaluator_for,
    telling,
)
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.evaluation.settings import find_settings, settings_note
from primesvt.importance import CriterionContext, uses_seed
from primesvt.models import SpikingViT
from primesvt.models.digest import config_of, model_digest
from primesvt.models.forward import check_can_be_cut, check_no_nan, first_samples, unwrap
from primesvt.profiling.latency_table import LatencyTable
from primesvt.profiling.limits import Limit
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.candidates import Candidates, find_candidates
from primesvt.pruning.confirmation import Confirmation, confirmed
from primesvt.pruning.inputs import (
    Data,
    RunInputs,
    distance_inputs,
    divide_outcomes,
    set_aside,
    unlabelled,
    working_copy,
)
from primesvt.pruning.limits import limit_notes, limits_of
from primesvt.pruning.lossless import StartNetwork, remove_constant_channels, remove_unused
from primesvt.pruning.metrics import Conclusion, Metrics, Solved
from primesvt.pruning.policies import AccuracyGate, PolicyResult
from primesvt.pruning.probe_table import ProbeTable, Reference
from primesvt.pruning.prober import Prober
from primesvt.pruning.request import Request, request_of
from primesvt.pruning.result import PruneResult, finish_run, steps_of, write_model
from primesvt.pruning.run_folder import RunFolder, stored_probes
from primesvt.pruning.sensitivity import check_probed, width_grids
from primesvt.pruning.variants import memory_for_networks

__all__ = ["prune"]


def prune(
    model: nn.Module | str | Path,
    *,
    data: Data | None = None,
    score: Score | None = None,
    example_input: Any = None,
    calibration: Iterable[Any] | Tensor | None = None,
    constraints: Limits | None = None,
    config: PruneConfig | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[PruneOptions],
) -> PruneResult:
    """Prune a model within the limits; the model given is not changed.

    Started by ``torchrun`` or ``accelerate launch``, several processes measure together; only the
    first writes and tells, and all return the same (docs/method.md).

    Args:
        model: any spiking network; its neurons are reset, then a copy is worked on. Or a name of
            the registry, a checkpoint file or a saved folder, as on the command line.
        data: what to measure accuracy on: ``Splits``, or anything that ``load_data`` takes; that of
            the config, or of a model that was named, when neither this nor ``score`` is given.
        score: instead of ``data``, model -> number (higher is better), or a vector of per-sample
            outcomes, which allows pairing; must be deterministic. Limits are in its own unit. Each
            of several processes calls it, and what it gives the first one counts.
        example_input: an input (or a tuple of them) to trace with; taken from ``calibration``,
            ``data`` or one call of ``score`` when not given.
        calibration: inputs without labels, as a tensor, a Dataset or batches; taken from ``data``,
            or from one call of ``score``, when not given.
        constraints: the limits; those of the config when not given: 3 points may be lost.
        config: every option of the run, such as ``read_recipe("recipe.yaml")`` gives; the defaults
            when not given.
        out: run folder; a run that was stopped there goes on, one that has ended is returned. It
            is this process's until the run ends.
        progress: called as ``progress(stage, done, total)``.
        options: single options of the config by their names, such as ``policy="prime"``, which go
            before it (``primesvt.config`` says what each means, as ``primesvt prune --help`` does);
            ``importance`` may be a function ``f(context, group)`` that gives scores
            ``[positions, size]``; ``preset`` names a set of choices; ``from_run`` is a run folder
            whose probes are used again under new limits.

    Raises:
        ValueError: a mistake in the input, in one line that says what to do.
        FolderInUse: another process is writing to ``out``; a ``ValueError`` too.

    Example:
        >>> from primesvt.models import create_model
        >>> result = prune(
        ...     create_model("sdt_v2_digits", pretrained=True),
        ...     data="digits",
        ...     constraints=Limits(max_accuracy_drop=2),
        ...     include=["*.block4_0.mlp.fc1"],
        ...     rates=[0.5],
        ... )
        >>> result.met, result.plan.steps[0].before, result.plan.steps[0].after
        (True, (1, 160), (1, 80))

    Source: PrimeSVT (arXiv 2606.03428); our reading of it is in docs/method.md.
    """
    request = request_of(config, limits=constraints, data=data, options=options)
    if not isinstance(model, nn.Module):
        model, request = _opened(model, request, score=score)
    asked = request.config
    original = unwrap(model)
    check_can_be_cut(original)
    check_no_nan(original)
    if out is not None:
        extra_state(original)  # what cannot be saved is told before the search
    ProcessGroup.take_gpu()
    processes = ProcessGroup.start(resolve_device(asked.run.device, original))
    if out is not None:
        processes.on_main(lambda: check_place(out))
    processes.check_same(
        lambda: {**_flat(asked), "out": out is None, "from_run": request.from_run is None}
    )
    earlier = None
    if request.from_run is not None:
        run = request.from_run
        earlier = processes.on_main(lambda: stored_probes(run))
    evaluator = evaluator_for(
        original,
        asked.data if data is None and score is None else data,
        score,
        processes.device,
        asked.run.seed,
        asked.run.batch_size,
        asked.run.workers,
        processes,
        selection_from_train=asked.run.selection_from_train,
    )
    original = _settled(original, evaluator, asked, progress)
    search, held_out, notes = set_aside(evaluator, asked, earlier)
    notes = (*settings_note(original), *notes)
    folder = None if out is None else RunFolder(out, asked, processes)
    with random_state_kept(), nullcontext() if folder is None else folder.locked():
        return _prune(
            working_copy(original, processes.device),
            request,
            _Source(
                search=search, held_out=held_out, example=example_input, unlabelled=calibration
            ),
            folder=folder,
            earlier=earlier,
            notes=notes,
            progress=progress if processes.main else None,
        )


def _settled(
    original: nn.Module, evaluate: Evaluator, config: PruneConfig, progress: Progress | None
) -> nn.Module:
    """The model with the guessed settings of its checkpoint tried on data, where it has some."""
    if not isinstance(original, SpikingViT) or not isinstance(evaluate, DataEvaluator):
        return original
    return find_settings(
        original,
        evaluate.splits,
        seed=config.run.seed,
        batch_size=config.run.batch_size,
        device=evaluate.device,
        processes=evaluate.processes,
        progress=progress if evaluate.processes.main else None,
    )


def _opened(
    named: str | Path, request: Request, *, score: Score | None
) -> tuple[nn.Module, Request]:
    """A model given by name, file or folder, and the request with its name and its own data."""
    if not isinstance(named, str | Path):
        raise TypeError(
            f"model is a {type(named).__name__}; give a torch module, a name of list_models(), a "
            "checkpoint file or a folder"
        )
    config = request.config.model_copy(update={"model": str(named)})
    opened = open_model(
        named,
        time_steps=config.time_steps,
        family=config.family,
        overrides=parse_overrides(config.override),
    )
    own = own_data(named)
    if config.data is None and score is None and own is not None:
        config = config.model_copy(update={"data": own.found()})
    return opened.model, replace(request, config=config)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The evaluator, the images set aside for the confirmation, and the inputs that were given."""

    search: Evaluator
    held_out: Dataset[Any] | None
    example: Any
    unlabelled: Iterable[Any] | Tensor | None


def _prune(
    unpruned: nn.Module,
    request: Request,
    source: _Source,
    *,
    folder: RunFolder | None,
    earlier: ProbeTable | None,
    notes: tuple[str, ...],
    progress: Progress | None,
) -> PruneResult:
    """Run the six steps of pruning; the folder is made once nothing can be wrong with the input.

    Several processes run it in lockstep: each call of ``processes``, of the folder and of the
    evaluator is one of all of them, in this order.
    """
    search, processes = source.search, source.search.processes
    config, method, limits = request.config, request.method, request.config.limits

    # 1. What is measured, and on what: the inputs, the unpruned network, probes made before.
    facts = {"model": model_digest(unpruned), **search.context()}
    processes.check_same(lambda: facts)
    stored = None if folder is None else folder.probes()
    inputs = RunInputs.of(
        unpruned,
        search,
        example=source.example,
        calibration=source.unlabelled,
        batch_size=config.run.batch_size,
        measure=stored is None and earlier is None,
        progress=progress,
    )
    search, confirms, inputs, divided = divide_outcomes(search, inputs, config, (stored, earlier))
    request = request.for_inputs(inputs.calibration)
    facts |= search.context()
    context = facts | _context(unpruned, request, inputs)
    reference = _reference(unpruned, inputs, context, (stored, earlier))
    if folder is not None and (metrics := folder.metrics()) is not None:
        probes = ProbeTable(reference) if stored is None else stored
        return _finished(folder, metrics, probes, unpruned, config)
    # Both raise where a limit cannot be meant, before the long steps begin.
    _gate(request, reference, search)
    limits.required_bytes(reference.parameter_bytes)

    # 2. Where pruning starts: what changes no prediction goes first, and is counted apart.
    start, candidates = _start_network(unpruned, search, inputs, request, progress)
    context["lossless_cuts"] = start.removed
    unread = _unread_note(start)
    groups = [group.name for group in start.groups]
    processes.check_same(lambda: {**context, "groups": groups})
    for table in (stored, earlier):
        if table is not None:  # one without probes is empty, and false
            table.check(context)
    if earlier is not None and request.needs_curves:
        check_probed(earlier, start.groups, method.rates or (), method.channel_multiple)
    limit = config.run.memory_bytes
    memory = memory_for_networks(start.model, inputs.example, search, limit=limit)

    # 3. The table of probes begins with the network that savings count from; the gate compares.
    size = parameter_bytes(start.model)
    reference = replace(reference, context=context, parameter_bytes=size)
    probes = _probes(folder, stored, earlier, reference)
    gate = _gate(request, probes.reference, search)

    # 4. The prober builds, recovers and measures smaller networks; the policy says which ones.
    others = limits_of(
        config,
        start,
        inputs=inputs.batch,
        table=LatencyTable() if folder is None else folder.latencies(),
        processes=processes,
        progress=progress,
    )
    prober = _prober(start, request, inputs, search, gate, probes, others, memory, progress)
    needed = limits.required_bytes(probes.reference.parameter_bytes)
    policy = request.policy.from_config(
        method.policy_options, gate, needed if limits.stop_at_saving else None
    )
    grids = width_grids(
        start.model,
        start.graph,
        start.groups,
        rates=method.rates or (),
        order=method.order,
        multiple=method.channel_multiple,
    )
    found = policy.search(grids, prober)

    # 5. Images that chose nothing confirm the plan, or a milder one.
    if source.held_out is not None and isinstance(search, DataEvaluator):
        confirms = replace(search, splits=replace(search.splits, selection=source.held_out))
    found, confirmation = _confirm(found, prober, gate, confirms, unpruned, progress)

    # 6. The smaller network, its plan, and what was traded for what (the test set is read once).
    pruned = prober.cut(found.cuts)
    processes.broadcast_state(pruned, parameters=True)
    steps, kept = steps_of(found, prober, start)
    rows = {name: prober.kept(name, count) for name, count in found.cuts.items()}
    _check_final(start, rows, config)
    smaller = start.graph.after(rows)
    plan = Plan(
        model_hash=str(context["model"]),
        config=config_of(unpruned),
        inputs=describe_inputs(first_samples(inputs.example, 1)),
        steps=steps,
        groups=kept,
        rewrites=describe_rewrites(smaller.rewrites, smaller.sizes),
    )
    if folder is not None:  # before the test set is touched: nothing measured can be lost then
        write_model(folder, plan, pruned)
    conclusion = Conclusion(
        evaluate=search,
        limits=limits,
        gate=gate,
        example=inputs.example,
        calibration=inputs.calibration,
        latency=config.run.latency,
        progress=progress,
    )
    solved = Solved(
        found=found,
        plan=plan,
        model=pruned,
        start=start,
        candidates=candidates,
        confirmation=confirmation,
        others=tuple(each.at(found.cuts) for each in others),
    )
    remarks = [*notes, *divided]
    if request.from_run is not None:
        remarks.append(f"Solved again from the probes of {request.from_run}.")
    remarks += [*inputs.notes, *unread, *rewrite_notes(start.graph.rewrites)]
    remarks += [*limit_notes(limits, method), *request.notes]
    metrics = processes.broadcast(conclusion.metrics(unpruned, solved, remarks))
    if folder is not None:
        finish_run(folder, metrics)
    return PruneResult(
        model=pruned,
        plan=plan,
        metrics=metrics,
        config=config,
        probes=probes,
        refusals=candidates.refusals,
    )


def _check_final(start: StartNetwork, rows: Mapping[str, Ids], config: PruneConfig) -> None:
    """Check the plan's own widths in somebody's network, whose forward may depend on them."""
    if not config.run.verify or isinstance(start.model, SpikingViT):
        return
    failure = verify_cut(start.model, start.graph, rows)
    if failure is not None:
        where = f" in module '{failure.module}'" if failure.module else ""
        raise ValueError(
            f"the plan's cut is not exact at its widths, although each group's trial cuts were: "
            f"{failure.reason}{where}; {failure.fix}, or exclude the groups of that module"
        )


def _flat(config: PruneConfig) -> dict[str, Any]:
    """All options on one level, to compare those that several processes were given."""
    values = config.to_dict()
    sections = ("selection", "method", "run")
    return {"limits": values["limits"]} | {
        k: v for name in sections for k, v in values[name].items()
    }


def _context(unpruned: nn.Module, request: Request, inputs: RunInputs) -> dict[str, Any]:
    """The settings that the result of a probe depends on, beside model, data and cut."""
    method, calibration = request.method, inputs.calibration
    looks = request.looks_at_inputs or method.lossless
    digest = request.function_digest
    return {
        "time_steps": getattr(unpruned, "time_steps", None),
        "lossless": method.lossless,
        **request.names,
        "calibration": calibration.digest() if looks and calibration is not None else None,
        "seed": request.config.run.seed if uses_seed(request.criterion) else None,
        **({} if digest is None else {"importance_source": digest}),
    }


def _reference(
    unpruned: nn.Module,
    inputs: RunInputs,
    context: Mapping[str, Any],
    tables: tuple[ProbeTable | None, ...],
) -> Reference:
    """The measured unpruned network, from stored probes or as it was measured now."""
    known = [table for table in tables if table is not None]
    for table in known:
        table.check(context)
    measured = inputs.measurement
    if not known:
        assert measured is not None
        size = parameter_bytes(unpruned)
        return Reference(context=context, measurement=measured, parameter_bytes=size)
    reference = known[0].reference
    if measured is not None and measured.value != reference.accuracy:
        raise ValueError(
            f"score gave {measured.value:g} for the unpruned model and "
            f"{reference.accuracy:g} before; it must give the same each time"
        )
    return reference


def _gate(request: Request, reference: Reference, search: Evaluator) -> AccuracyGate:
    """The gate that compares networks with the unpruned one, by the accuracy limit."""
    allowed = request.config.limits.allowed_drop(reference.accuracy, points=search.points)
    method = request.method
    return AccuracyGate(kind=method.gate, allowed=allowed, reference=reference, level=method.level)


def _start_network(
    unpruned: nn.Module,
    search: Evaluator,
    inputs: RunInputs,
    request: Request,
    progress: Progress | None,
) -> tuple[StartNetwork, Candidates]:
    """The network that pruning starts from, with its channel graph and the groups to prune."""
    tell = progress or (lambda *_: None)
    sources = unlabelled(search, inputs.calibration)
    lossless, selection = request.method.lossless, request.config.selection
    stripped = remove_unused(unpruned, sources[-1:], search.processes) if lossless else None
    network = unpruned if stripped is None else stripped.model
    tell("tracing", 0, 0)
    graph = trace(network, inputs.example)
    candidates = find_candidates(
        network,
        graph,
        selection,
        verify=request.config.run.verify,
        progress=progress,
    )
    if stripped is None:
        return StartNetwork.whole(network, graph, candidates.groups), candidates
    tell("looking for silent channels", 0, 0)
    multiple = request.method.channel_multiple
    start = remove_constant_channels(
        unpruned, stripped, graph, candidates.groups, sources, multiple, search.processes
    )
    return start, candidates


def _unread_note(start: StartNetwork) -> tuple[str, ...]:
    """A sentence, also given as a warning, on weights of somebody's network that stay as wide.

    No traced forward reads them, so nothing tells which of their channels go.
    """
    unread = () if isinstance(start.model, SpikingViT) else start.graph.unread
    if not unread:
        return ()
    shown = ", ".join(unread[:4]) + (f" and {len(unread) - 4} more" if len(unread) > 4 else "")
    note = (
        f"No forward that could be traced reads {shown}: they keep their shapes, and a training "
        "that reads them may not fit the smaller network."
    )
    warnings.warn(note, stacklevel=4)
    return (note,)


def _probes(
    folder: RunFolder | None,
    stored: ProbeTable | None,
    earlier: ProbeTable | None,
    reference: Reference,
) -> ProbeTable:
    """The table of probes of the run, stored or new, with those of an earlier run added."""
    if folder is not None:
        folder.create()
    if stored is None:
        stored = ProbeTable(reference) if folder is None else folder.new_probes(reference)
    if earlier is not None:
        stored.take(earlier)
    return stored


def _prober(
    start: StartNetwork,
    request: Request,
    inputs: RunInputs,
    search: Evaluator,
    gate: AccuracyGate,
    probes: ProbeTable,
    limits: tuple[Limit, ...],
    memory: int,
    progress: Progress | None,
) -> Prober:
    """The prober of the run; calibration statistics are gathered when they are first needed."""
    if progress is not None:
        progress("calibrating", 0, 0)
    activity = None
    if inputs.calibration is not None and request.looks_at_inputs:
        activity = ActivationStatistics(
            model=start.model,
            graph=start.graph,
            groups=start.groups,
            calibration=inputs.calibration,
        )
    wanted = request.policy.measures_distances
    answers = distance_inputs(search, inputs.calibration) if wanted else None
    seed = request.config.run.seed
    return Prober(
        model=start.model,
        graph=start.graph,
        evaluate=search,
        table=probes,
        importance=request.criterion,
        evidence=CriterionContext(
            model=start.model, graph=start.graph, activity=activity, seed=seed
        ),
        recovery=request.recovery(activity=activity),
        distance=None if answers is None else OutputDivergence(start.model, answers),
        race=_early_rejection(request, gate, search),
        exact=request.method.exact,
        limits=limits,
        progress=progress,
        memory=memory,
        processes=search.processes,
    )


def _early_rejection(
    request: Request, gate: AccuracyGate, search: Evaluator
) -> SequentialTest | None:
    """The sequential test that rejects probes early; ``None`` where all are measured in full."""
    outcomes = gate.reference.measurement.outcomes
    if request.method.exact or not isinstance(search, DataEvaluator) or outcomes is None:
        return None
    return SequentialTest(
        limit=gate.allowed,
        total=len(outcomes),
        gate=gate.kind,
        level=gate.level,
        error=request.method.race_error,
    )


def _confirm(
    found: PolicyResult,
    prober: Prober,
    gate: AccuracyGate,
    confirms: Evaluator | None,
    unpruned: nn.Module,
    progress: Progress | None,
) -> tuple[PolicyResult, Confirmation | None]:
    """Confirm the plan, or a milder one, on samples set aside that no probe was measured on."""
    if confirms is None or not found.choices:
        return found, None
    evaluate = telling(confirms, None)

    def outcomes(network: nn.Module) -> Outcomes:
        if progress is not None:
            progress("confirming", 0, 0)
        answers = evaluate(network).outcomes
        assert answers is not None
        return answers

    return confirmed(found, prober, gate, outcomes=outcomes, before=outcomes(unpruned))


def _finished(
    folder: RunFolder,
    metrics: Metrics,
    probes: ProbeTable,
    unpruned: nn.Module,
    config: PruneConfig,
) -> PruneResult:
    """Load the result of a run that has ended; the test set is not read again."""
    finish_run(folder, metrics)
    plan = folder.stored_plan()
    into = None if plan.config is not None else unpruned
    device = next((p.device for p in unpruned.parameters()), torch.device("cpu"))
    with folder.stored_model() as place:
        smaller = load(place, into=into).to(device)
    return PruneResult(model=smaller, plan=plan, metrics=metrics, config=config, probes=probes)

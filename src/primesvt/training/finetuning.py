"""Fine-tune a pruned network with its unpruned self as teacher."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from primesvt.channels.plan import Plan
from primesvt.distributed import Processes
from primesvt.evaluation.evaluator import DataEvaluator, Progress, resolve_device
from primesvt.profiling.memory import parameter_count
from primesvt.pruning.inputs import Data, evaluator_for
from primesvt.recovery.finetuning.recipe import FinetuneRecipe
from primesvt.recovery.finetuning.record import FinetuneRecord, FinetuneResult
from primesvt.recovery.finetuning.tuning import Tuning
from primesvt.training.finetune_folder import TunedFolder
from primesvt.training.finetune_source import Source, source_of_model, source_of_run
from primesvt.training.folder import Saver
from primesvt.training.randomness import repeatable
from primesvt.training.record import versions

__all__ = ["finetune"]


def finetune(
    model: nn.Module | str | Path,
    *,
    teacher: nn.Module | str | Path | None = None,
    data: Data | None = None,
    recipe: FinetuneRecipe | Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    out: str | Path | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    workers: int = 0,
    save_every: float = 60.0,
    command: str = "",
    progress: Progress | None = None,
) -> FinetuneResult:
    """Fine-tune a pruned network; the model given is not changed.

    The weights of the epoch that is best on the selection images are kept (the later one of
    equals), and the weights before fine-tuning compete with them, so the result is never worse
    there. The test images are read once, at the end. Started by ``torchrun`` or ``accelerate
    launch``, several processes share every batch; only the first writes.

    Args:
        model: the folder of a finished run, or a pruned network.
        teacher: the unpruned network: a model, a registry name, a file or a folder; that of the
            run when not given.
        data: what ``prune`` takes, with a training part; that of the run when not given.
        recipe: how to train; fields left out follow the training on record (docs/finetuning.md).
        plan: how a network given was cut, as in ``result.plan``; to write a network that no
            registry knows.
        out: folder of the result; ``RUN/finetuned`` when not given, nothing for a network. A
            fine-tuning that was stopped there goes on, one that has ended is returned.
        batch_size: images per forward pass in evaluation; the run's, or 64, when not given.
        seed: draws the sets out of ``data``; the run's, or 0, when not given.
        device: where to compute; where the model is, when not given.
        workers: processes that load images.
        save_every: seconds between saved states. Less where saving takes more than a twentieth.
        command: the command line to put on record.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: a mistake in the input, or a loss that is not finite, in one line.
        FolderInUse: another process is writing to ``out``; a ``ValueError`` too.

    Example:
        >>> from primesvt import create_model
        >>> model = create_model("sdt_v2_digits", pretrained=True)
        >>> recipe = {"epochs": 1, "batch_size": 256, "learning_rate": 1e-5}
        >>> tuned = finetune(model, teacher="sdt_v2_digits", data="digits", recipe=recipe)
        >>> tuned.record.after.selection.accuracy >= tuned.record.before.selection.accuracy
        True
    """
    if isinstance(model, nn.Module):
        source = source_of_model(
            model, teacher=teacher, data=data, plan=plan, batch_size=batch_size, seed=seed
        )
    else:
        source = source_of_run(model, teacher=teacher, data=data, batch_size=batch_size, seed=seed)
        out = Path(model) / "finetuned" if out is None else out
    if not isinstance(recipe, FinetuneRecipe):
        recipe = FinetuneRecipe.after(source.training, recipe or {})
    Processes.take_gpu()
    processes = Processes.start(resolve_device(device, source.student))
    with repeatable(recipe.seed, recipe.threads, processes.device):
        tuning = _prepared(source, recipe, processes, workers, progress)
        if out is None:
            tuning.run(lambda: None, lambda: None)
            return _result(tuning, source, command)
        return _in_folder(tuning, source, Path(out), save_every, command)


def _in_folder(
    tuning: Tuning, source: Source, out: Path, save_every: float, command: str
) -> FinetuneResult:
    """Begin, go on, or give what is finished; the main process alone reads and writes there."""
    on_main = tuning.processes.on_main
    plan = source.full_plan(tuning.evaluate)
    if plan is None:
        raise ValueError(
            "a network of your own can only be loaded again with its plan; give plan=result.plan"
        )

    def opened() -> TunedFolder:
        return TunedFolder(out, recipe=tuning.recipe, context=tuning.context)

    on_main(opened)
    with tuning.processes.locked(out):
        return _tuned(tuning, source, on_main(opened), plan, save_every, command)


def _tuned(
    tuning: Tuning, source: Source, folder: TunedFolder, plan: Plan, save_every: float, command: str
) -> FinetuneResult:
    """What lies in the folder is compared with what is asked before anything is written there."""
    on_main = tuning.processes.on_main
    saver = Saver(lambda: _save(tuning, folder), save_every, tuning.processes)
    finished = on_main(folder.finished)
    if finished is not None:
        weights = on_main(lambda: load_file(folder.model / "model.safetensors"))
        tuning.student.load_state_dict(weights)
        return FinetuneResult(model=tuning.student.eval(), record=finished)
    stopped = on_main(folder.stopped)
    if stopped is None:
        on_main(folder.create)
    else:
        tuning.restore(stopped)
    tuning.run(saver.now, saver.if_due)
    result = _result(tuning, source, command)
    on_main(lambda: folder.finish_with(result.model, plan, result.record))
    return result


def _save(tuning: Tuning, folder: TunedFolder) -> None:
    snapshot = tuning.snapshot()
    tuning.processes.on_main(lambda: folder.save(snapshot))


def _result(tuning: Tuning, source: Source, command: str) -> FinetuneResult:
    """The best weights and all figures; the test set is read here."""
    scores = tuning.conclude()
    before, after = scores["before"], scores["after"]
    assert before is not None and after is not None
    record = FinetuneRecord(
        command=command,
        run=None if source.run is None else str(source.run),
        recipe=tuning.recipe.to_dict(),
        context=tuning.context,
        data=tuning.evaluate.splits.description(),
        data_spec=source.data_spec,
        versions=versions() | {"accelerate": version("accelerate")},
        processes=tuning.processes.size,
        parameters=parameter_count(tuning.student),
        seconds=round(tuning.seconds, 1),
        kept_epoch=tuning.best.epoch,
        loss=tuple(round(loss, 6) for loss in tuning.loop.losses),
        selection_accuracy=tuple(tuning.best.accuracies),
        unpruned=scores["unpruned"],
        before=before,
        selection=after.selection,
        test=after.test,
        notes=tuning.all_notes(),
    )
    return FinetuneResult(model=tuning.student.eval(), record=record)


def _prepared(
    source: Source,
    recipe: FinetuneRecipe,
    processes: Processes,
    workers: int,
    progress: Progress | None,
) -> Tuning:
    """Networks on their device, the sets, and all that can be wrong with them found out."""
    device = processes.device
    distils = recipe.distillation > 0 or recipe.feature_weight > 0
    teacher = source.open_teacher() if distils else None
    evaluate = evaluator_for(
        source.student,
        source.data,
        None,
        device,
        source.seed,
        source.batch_size,
        workers,
        processes,
    )
    assert isinstance(evaluate, DataEvaluator)
    told = progress if processes.main else None
    return Tuning(
        source.student.to(device),
        None if teacher is None else teacher.to(device),
        evaluate,
        recipe,
        processes,
        told or (lambda stage, done, total: None),
    )

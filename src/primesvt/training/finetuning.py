"""Fine-tune a pruned network with its unpruned self as teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from primesvt._files import check_place, validated
from primesvt._guard import check_counts
from primesvt.channels.plan import Plan
from primesvt.checkpoint.folder import read_tensors
from primesvt.checkpoint.load import Data
from primesvt.data.digest import data_digest
from primesvt.distributed import ProcessGroup, resolve_device
from primesvt.evaluation.batch_dependence import batch_note, mixing_of
from primesvt.evaluation.confidence import Accuracy, accuracy_of
from primesvt.evaluation.evaluator import DataEvaluator, Progress, evaluator_for
from primesvt.models import SpikingViT
from primesvt.models.digest import model_digest
from primesvt.models.forward import check_no_nan, evaluating
from primesvt.models.registry import provenance_of
from primesvt.models.state import settle
from primesvt.models.state_dict import check_shapes, give_tensors, tensors_of
from primesvt.profiling.memory import parameter_count
from primesvt.training.config import FinetuneRecipe
from primesvt.training.distillation import Distillation
from primesvt.training.finetune_source import FinetuneSource, source_of_model, source_of_run
from primesvt.training.folder import FinetuneFolder, Saver, resume
from primesvt.training.loop import BestWeights, TrainingLoop, computes_in_bf16
from primesvt.training.record import (
    FinetuneRecord,
    FinetuneResult,
    SetAccuracies,
    shared_note,
    versions,
)
from primesvt.training.run import black
from primesvt.training.snapshot import Snapshot, repeatable

__all__ = ["FinetuneLoop", "finetune"]


class FinetuneLoop:
    """Fine-tunes a pruned network in place; its weights before count as the result of epoch 0.

    Args:
        student: the pruned network.
        teacher: the unpruned one, where something is distilled.
        evaluate: measures networks on all sets.
        recipe: how to train.
        processes: those that share every batch.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: no training images, weights that are not finite, networks that cannot be
            compared, batches that cannot be shared.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        evaluate: DataEvaluator,
        recipe: FinetuneRecipe,
        processes: ProcessGroup,
        progress: Progress,
    ) -> None:
        self.student, self.evaluate, self.recipe = student, evaluate, recipe
        self.processes, self.progress = processes, progress
        self.bf16 = computes_in_bf16(recipe.precision, processes.device)
        self.notes: list[str] = []
        self._begin = time.monotonic()
        splits = evaluate.splits
        if splits.train is None:
            raise ValueError(
                f"{splits.name} has no training {splits.unit}; give data with a train part"
            )
        images = splits.train
        check_no_nan(student)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("no parameter of the model may be trained; set requires_grad on some")
        self.share = processes.share(recipe.batch_size)
        self.context = self._context(teacher, images)
        self.start = tensors_of(student)
        self.loss = Distillation(student, teacher, recipe)
        few = self._few(images)
        for network in (student,) if teacher is None else (student, teacher):
            with evaluating(network):
                settle(network.to(processes.device), (few[0],))
        classes = self.loss.check(student, *few)
        self.loop = TrainingLoop(
            student,
            images,
            recipe,
            loss=self.loss,
            processes=processes,
            # Black, or zero where it is unknown which value is black.
            fill=black(provenance_of(student).data)
            if isinstance(student, SpikingViT)
            else torch.zeros(1),
            classes=classes,
            workers=evaluate.workers,
            bf16=self.bf16,
            stage="fine-tuning",
        )
        self.best = BestWeights(first=0)

    @property
    def seconds(self) -> float:
        """Seconds of computing since the start, without the time in which it was stopped."""
        return time.monotonic() - self._begin

    def run(self, save: Callable[[], None], after_step: Callable[[], None]) -> None:
        """Train the epochs that are left; ``save`` is called at the end of each."""
        if not self.best.accuracies:
            self._judge("measuring")
            save()
        for _ in range(len(self.loop.losses), self.recipe.epochs):
            with self.loss.watching():
                self.loop.epoch(self.progress, after_step)
            self._judge()
            save()

    def _judge(self, stage: str = "") -> None:
        judged = self.loop.result
        self.best.offer(judged, self.score(judged, "selection", stage).accuracy)

    def score(self, model: nn.Module, part: str, stage: str = "") -> Accuracy:
        """Top-1 of a network on the ``selection`` or ``test`` set; ``stage`` is for progress."""
        dataset = getattr(self.evaluate.splits, part)
        progress = self.progress if stage else None
        measurement = self.evaluate.on(dataset, model, progress=progress, stage=stage)
        found = accuracy_of(measurement.value, _size(dataset))
        assert found is not None
        return found

    def conclude(self) -> dict[str, SetAccuracies | None]:
        """Accuracies of the unpruned, pruned and fine-tuned network; reads the test set, once.

        Afterwards the student has the best weights.
        """
        accuracies, images = self.best.accuracies, _size(self.evaluate.splits.selection)
        found: dict[str, SetAccuracies | None] = {"unpruned": None}
        if self.loss.teacher is not None:
            found["unpruned"] = self._scores("unpruned", self.loss.teacher, None)
        before = accuracy_of(accuracies[0], images)
        give_tensors(self.student, self.start)
        found["before"] = self._scores("pruned", self.student, before)
        self.best.give(self.student)
        kept = accuracy_of(accuracies[self.best.epoch], images)
        untouched = self.best.epoch == 0
        found["after"] = (
            found["before"] if untouched else self._scores("fine-tuned", self.student, kept)
        )
        return found

    def _scores(self, name: str, model: nn.Module, selection: Accuracy | None) -> SetAccuracies:
        stage, tested = f"measuring {name}", self.evaluate.splits.test is not None
        return SetAccuracies(
            selection=selection or self.score(model, "selection", f"{stage}, selection"),
            test=self.score(model, "test", f"{stage}, test") if tested else None,
        )

    def snapshot(self) -> Snapshot:
        """The state of the training, with which it can be resumed exactly."""
        loop, best = self.loop.snapshot(), self.best.snapshot()
        facts = {**loop.facts, **best.facts, "notes": list(self.notes), "seconds": self.seconds}
        return Snapshot(tensors={**loop.tensors, **best.tensors}, facts=facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot."""
        self.loop.restore(snapshot)
        self.best.restore(snapshot, self.processes.device)
        self.notes = validated(list[str], snapshot.facts["notes"])
        self._begin -= validated(float, snapshot.facts["seconds"])
        before, now = snapshot.facts["processes"], self.processes.size
        if before != now:
            self.notes.append(f"Begun with {before} process(es), gone on with {now}.")

    def all_notes(self) -> tuple[str, ...]:
        """Notes on the accuracies: number of processes, resumed runs, effects of the batch size."""
        splits = self.evaluate.splits
        sets = {"selection": splits.selection, "test": splits.test}
        notes = [*shared_note(self.processes.size), *self.notes]
        mixing = mixing_of(self.student)
        if mixing:
            notes.append(
                f"The images of a batch influence each other in this model ({mixing}): trained in "
                f"batches of {self.share} in each process."
            )
        return (*notes, *batch_note(self.student, self.evaluate.batch_size, **sets))

    def _context(self, teacher: nn.Module | None, images: Dataset[Any]) -> dict[str, Any]:
        return {
            "pruned_model": model_digest(self.student),
            "teacher": None if teacher is None else model_digest(teacher),
            "time_steps": getattr(self.student, "time_steps", None),
            "training_images": _size(images),
            "selection_set": data_digest(self.evaluate.splits.selection),
            "batch_size": self.evaluate.batch_size,
            "device": self.processes.device.type,
            "precision": "bf16" if self.bf16 else "fp32",
        }

    def _few(self, images: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """Two training samples, on the device."""
        few = Subset(images, range(min(2, _size(images))))
        samples, labels = next(iter(DataLoader(few, batch_size=2)))
        return samples.to(self.processes.device), labels.to(self.processes.device)


def _size(dataset: Dataset[Any]) -> int:
    return len(cast(Any, dataset))


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
    check_counts(batch_size=batch_size, seed=seed, workers=workers)
    resolve_device(device)
    if not isinstance(recipe, FinetuneRecipe):
        FinetuneRecipe.after(None, {} if recipe is None else recipe)  # told first
    if out is not None:
        check_place(out)
    if isinstance(model, nn.Module):
        source = source_of_model(
            model, teacher=teacher, data=data, plan=plan, batch_size=batch_size, seed=seed
        )
    else:
        source = source_of_run(model, teacher=teacher, data=data, batch_size=batch_size, seed=seed)
        out = Path(model) / "finetuned" if out is None else out
    if not isinstance(recipe, FinetuneRecipe):
        recipe = FinetuneRecipe.after(source.training, recipe or {})
    ProcessGroup.take_gpu()
    processes = ProcessGroup.start(resolve_device(device, source.student))
    with repeatable(recipe.seed, recipe.threads, processes.device):
        tuning = _prepared(source, recipe, processes, workers, progress)
        if out is None:
            tuning.run(lambda: None, lambda: None)
            return _result(tuning, source, command)
        return _in_folder(tuning, source, Path(out), save_every, command)


def _in_folder(
    tuning: FinetuneLoop, source: FinetuneSource, out: Path, save_every: float, command: str
) -> FinetuneResult:
    """Start, resume, or return what is finished; only the main process reads and writes there.

    Nothing is written before what lies in the folder was compared with what is asked.
    """
    on_main = tuning.processes.on_main
    plan = source.full_plan(tuning.evaluate)
    if plan is None:
        raise ValueError(
            "a network of your own can only be loaded again with its plan; give plan=result.plan"
        )

    def opened() -> FinetuneFolder:
        return FinetuneFolder(out, recipe=tuning.recipe, context=tuning.context)

    def save() -> None:
        snapshot = tuning.snapshot()
        on_main(lambda: folder.save(snapshot))

    on_main(opened)
    with tuning.processes.locked(out):
        folder = on_main(opened)
        finished = on_main(folder.finished)
        if finished is not None:
            on_main(folder.tidy)
            file = folder.model / "model.safetensors"
            weights = on_main(lambda: read_tensors(file))
            check_shapes(tensors_of(tuning.student), weights, source=str(file))
            give_tensors(tuning.student, weights)
            return FinetuneResult(model=tuning.student.eval(), record=finished)
        saver = Saver(save, save_every, tuning.processes)
        stopped = on_main(folder.stopped)
        if stopped is None:
            on_main(folder.create)
        else:
            resume(tuning.restore, stopped, folder)
        tuning.run(saver.now, saver.if_due)
        result = _result(tuning, source, command)
        on_main(lambda: folder.finish_with(result.model, plan, result.record))
        return result


def _result(tuning: FinetuneLoop, source: FinetuneSource, command: str) -> FinetuneResult:
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
    source: FinetuneSource,
    recipe: FinetuneRecipe,
    processes: ProcessGroup,
    workers: int,
    progress: Progress | None,
) -> FinetuneLoop:
    """Open the teacher and the data, check them, and put both networks on their device."""
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
    report = progress if processes.main else None
    return FinetuneLoop(
        source.student.to(device),
        None if teacher is None else teacher.to(device),
        evaluate,
        recipe,
        processes,
        report or (lambda stage, done, total: None),
    )

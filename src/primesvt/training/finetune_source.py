"""The inputs of a fine-tuning: a pruned network, its unpruned teacher, and the data of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from primesvt.channels.plan import Plan, describe_inputs
from primesvt.checkpoint.folder import load
from primesvt.checkpoint.load import Data, open_model, own_data, splits_for
from primesvt.config import PruneConfig, parse_overrides, read_recipe
from primesvt.evaluation.evaluator import Evaluator, example_for
from primesvt.evaluation.settings import find_settings
from primesvt.models import reset
from primesvt.models.digest import config_of, model_digest
from primesvt.models.forward import copy_of, unwrap
from primesvt.training.config import TrainRecipe
from primesvt.training.record import recorded_recipe

__all__ = ["FinetuneSource", "source_of_model", "source_of_run"]

Model = nn.Module | str | Path


@dataclass(frozen=True, kw_only=True)
class FinetuneSource:
    """The pruned network, its teacher and data, and how it was pruned.

    Attributes:
        student: the pruned network, a copy.
        teacher: the unpruned network, or where it lies.
        data: what ``primesvt.prune`` took, or a part in its place.
        data_spec: its name or path, where it is not the run's.
        plan: how the student was cut; ``None`` where nobody said.
        run: the run folder, where there is one.
        asked: the recipe of a run that the command line made.
        batch_size: images per forward pass in evaluation.
        seed: draws the sets out of ``data``.
    """

    student: nn.Module
    teacher: Model | None
    data: Data
    plan: Plan | None = None
    run: Path | None = None
    asked: PruneConfig | None = field(default=None, repr=False)
    data_spec: str | None = None
    batch_size: int = 64
    seed: int = 0

    @property
    def training(self) -> TrainRecipe | None:
        """The recipe that the unpruned network was trained with, where that is on record."""
        return None if isinstance(self.teacher, nn.Module | None) else recorded_recipe(self.teacher)

    def open_teacher(self) -> nn.Module | None:
        """Load or copy the unpruned network.

        Raises ``ValueError`` where its weights are no longer those that were pruned.
        """
        if self.teacher is None:
            return None
        if isinstance(self.teacher, nn.Module):
            return own_copy(self.teacher)
        if self.asked is None or str(self.teacher) != self.asked.model:
            return find_settings(open_model(self.teacher).model, self.data, seed=self.seed)
        teacher = _original(self.asked)
        if self.plan is not None and model_digest(teacher) != self.plan.model_hash:
            raise ValueError(
                f"{self.asked.model} has changed since {self.run} pruned it; "
                "give the unpruned model as it was with --teacher"
            )
        return teacher

    def full_plan(self, evaluate: Evaluator) -> Plan | None:
        """The plan that ``save_model`` needs; ``None`` for a module of a user's without one."""
        if self.plan is not None or config_of(self.student) is None:
            return self.plan
        inputs = describe_inputs(example_for(None, None, evaluate))
        config = config_of(self.student)
        return Plan(model_hash="", config=config, inputs=inputs, steps=(), groups={})


def source_of_model(
    model: nn.Module,
    *,
    teacher: Model | None,
    data: Data | None,
    plan: Plan | None,
    batch_size: int | None,
    seed: int | None,
) -> FinetuneSource:
    """The inputs of fine-tuning a network that was given in Python."""
    if data is None:
        raise ValueError("no data given; give data= with a training part, as primesvt.prune takes")
    return FinetuneSource(
        student=own_copy(model),
        teacher=teacher,
        data=data,
        plan=plan,
        batch_size=64 if batch_size is None else batch_size,
        seed=0 if seed is None else seed,
    )


def source_of_run(
    folder: str | Path,
    *,
    teacher: Model | None,
    data: Data | None,
    batch_size: int | None,
    seed: int | None,
) -> FinetuneSource:
    """The inputs of fine-tuning a run; ``teacher`` and ``data`` replace those of the run."""
    path = Path(folder)
    recipe, plan = _recipe_of(path), Plan.load(path)
    asked = recipe if recipe.model is not None else None
    own = own_data(path)
    if asked is None and (teacher is None or (data is None and own is None)):
        raise ValueError(
            f"{path} was made in Python and names no model{'' if own else ' and data'}; "
            f"give teacher= (the unpruned model){'' if own else ' and data='}"
        )
    student = _student(path, plan, teacher)
    sets = data
    if data is None or (own is not None and isinstance(data, str | Path)):
        # As `primesvt prune` drew them.
        sets = splits_for(student, data, own=own, seed=seed if asked is None else None)
    assert sets is not None
    return FinetuneSource(
        student=student,
        teacher=teacher if teacher is not None else recipe.model,
        data=sets,
        data_spec=str(data) if isinstance(data, str | Path) else None,
        plan=plan,
        run=path,
        asked=asked,
        batch_size=recipe.run.batch_size if batch_size is None else batch_size,
        seed=seed if seed is not None else recipe.run.seed,
    )


def own_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model, without DDP and ``torch.compile`` wrappers."""
    model = unwrap(model)
    reset(model)
    return copy_of(model)


def _recipe_of(path: Path) -> PruneConfig:
    """The recipe of a finished run; ``ValueError`` where one of its files is missing."""
    missing = [
        name
        for name in ("recipe.yaml", "plan.json", "metrics.json", "model/config.json")
        if not (path / name).is_file()
    ]
    if missing:
        raise ValueError(
            f"{str(path)!r} is no finished run: it has no {missing[0]}; give a folder of "
            "`primesvt prune`, and let a run that was stopped go on to its end"
        )
    return read_recipe(path / "recipe.yaml")


def _student(path: Path, plan: Plan, teacher: Model | None) -> nn.Module:
    if plan.config is not None:
        student: nn.Module = load(path)
        return student
    if not isinstance(teacher, nn.Module):
        raise ValueError(
            f"{path} holds a network of your own; use primesvt.finetune in Python, with teacher="
        )
    own: nn.Module = load(path, into=own_copy(teacher))
    return own


def _original(asked: PruneConfig) -> nn.Module:
    """The unpruned network as ``primesvt prune`` opened it."""
    assert asked.model is not None
    try:
        return open_model(
            asked.model,
            time_steps=asked.time_steps,
            family=asked.family,
            container=asked.container,
            key_map=asked.key_map,
            overrides=parse_overrides(asked.override),
        ).model
    except ValueError as error:
        raise ValueError(f"{error}; or give the unpruned model with --teacher") from error

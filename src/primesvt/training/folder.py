"""The folder of a training: its recipe, the state from which it can be resumed, and the result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import nn

from primesvt._files import (
    check_place,
    check_writable,
    contents,
    read_json,
    validated,
    write_json,
    write_text,
)
from primesvt.channels.plan import Plan
from primesvt.checkpoint.folder import save_model
from primesvt.config import describe
from primesvt.distributed import ProcessGroup
from primesvt.training.config import FinetuneRecipe, TrainingConfig
from primesvt.training.record import FinetuneRecord
from primesvt.training.snapshot import Snapshot

__all__ = ["FinetuneFolder", "Saver", "TrainingFolder", "check_free", "resume"]


RECIPE, STATE, MODEL, RECORD, PROGRESS = (
    "recipe.yaml",
    "state.safetensors",
    "model",
    "record.json",
    "progress.json",
)


class TrainingFolder:
    """The folder of a training of one recipe, in which a stopped training can be resumed.

    Args:
        path: new, empty, or of the same recipe. Nothing is written before ``create``.
        recipe: what is asked.
        context: what else the result depends on.
        task: what is done there, as in ``a training``.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(
        self,
        path: Path,
        *,
        recipe: TrainingConfig,
        context: Mapping[str, Any],
        task: str = "a training",
    ) -> None:
        self.path, self.task = path, task
        self._recipe = type(recipe)
        self.question = _plain({**context, "recipe": recipe.to_dict()})

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.path / MODEL

    def finished_record(self) -> dict[str, Any] | None:
        """The record of a finished training; ``None`` where it has not finished."""
        path = self.path / RECORD
        if not path.exists():
            return None
        try:
            record = validated(dict[str, Any], read_json(path))
            context = validated(dict[str, Any], record.get("context", {}))
            recipe = validated(dict[str, Any], record.get("recipe"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: {error}; delete the folder to start anew"
            ) from error
        self.check_same({**context, "recipe": recipe})
        return record

    def stopped(self) -> Snapshot | None:
        """The state in which a training was stopped; ``None`` where there is none."""
        path = self.path / STATE
        if not path.exists():
            return None
        snapshot = Snapshot.load(path)
        question = snapshot.facts.get("question")
        if not isinstance(question, dict) or not isinstance(question.get("recipe"), dict):
            raise ValueError(f"{path} is damaged: it names no recipe; delete it to start anew")
        self.check_same(question)
        return snapshot

    def create(self) -> None:
        """Make the folder and write the recipe."""
        check_writable(self.path)
        text = yaml.safe_dump(self.question["recipe"], sort_keys=False)
        write_text(self.path / RECIPE, text)

    def save(self, snapshot: Snapshot, progress: Mapping[str, Any] | None = None) -> None:
        """Write the state in place of an older one, and the progress in a readable file."""
        facts = {**snapshot.facts, "question": self.question}
        Snapshot(tensors=snapshot.tensors, facts=facts).save(self.path / STATE)
        if progress is not None:
            write_json(self.path / PROGRESS, progress)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record, which marks the training as finished, and delete the state."""
        write_json(self.path / RECORD, record)
        self.tidy()

    def tidy(self) -> None:
        """Delete the state of a training that has finished, which a kill may have left."""
        for path in (self.path / STATE, self.path / PROGRESS):
            path.unlink(missing_ok=True)

    def check_same(self, there: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` naming the first setting that differs from those in the folder.

        Fields that an older version did not know have their defaults there.
        """
        try:
            recipe = self._recipe.model_validate(there["recipe"]).to_dict()
        except ValidationError as error:
            raise ValueError(
                f"cannot write {self.task} to {str(self.path)!r}: the recipe there is of something "
                f"else ({describe(error)}); choose a new or empty folder"
            ) from error
        here = {name: self.question[name] for name in self.question if name in there}
        found = next(iter(_differences(_plain({**there, "recipe": recipe}), here)), "")
        if found:
            raise ValueError(
                f"{self.path} holds {self.task} of another recipe: {found}; "
                "choose another --out, or delete that folder"
            )


COST = 20.0  # seconds of work for one of saving


class Saver:
    """Saves a training every few seconds, less often where saving itself is slow.

    Args:
        save: called on all processes.
        every: seconds; 0 saves whenever it is asked.
        processes: the main one decides.

    Example:
        >>> import torch
        >>> saved = []
        >>> saver = Saver(lambda: saved.append(1), 0.0, ProcessGroup(device=torch.device("cpu")))
        >>> saver.if_due()
        >>> saved
        [1]
    """

    def __init__(self, save: Callable[[], None], every: float, processes: ProcessGroup) -> None:
        if not every >= 0:
            raise ValueError(f"save_every is {every}, but must be at least 0 seconds")
        self._save, self._every, self._processes = save, every, processes
        self._took, self._last = 0.0, time.monotonic()

    def now(self) -> None:
        """Save at once."""
        begin = time.monotonic()
        self._save()
        self._last = time.monotonic()
        self._took = self._last - begin

    def if_due(self) -> None:
        """Save if it is time again; at most a twentieth of all time is spent on saving."""
        pause = self._every and max(self._every, COST * self._took)
        if self._processes.broadcast(time.monotonic() - self._last >= pause):
            self.now()


def resume(restore: Callable[[Snapshot], None], stopped: Snapshot, folder: TrainingFolder) -> None:
    """Go on from a state; ``ValueError`` where it lacks something or is of another network."""
    try:
        restore(stopped)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the file may be whole
    except Exception as error:  # whatever a damaged state leads to
        first = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{folder.path / STATE} is damaged: {type(error).__name__} {first}; delete it to start"
            " anew"
        ) from error


def check_free(path: Path, *, task: str) -> None:
    """Raise ``ValueError`` where something else lies in a folder, or a file in its place.

    What a training leaves that is killed before its first snapshot is nothing, as are hidden files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_free(Path(folder) / "new", task="a training")
    """
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"cannot write {task} to {str(path)!r}: it is a file; choose a folder "
            "that is new or empty"
        )
    check_place(path)
    there = set(contents(path))
    other = {name for name in there - {MODEL, RECIPE} if not name.startswith(".")}
    if other and not there & {STATE, RECORD}:
        raise ValueError(
            f"cannot write {task} to {str(path)!r}: it holds something else ({min(other)}); "
            "choose a new or empty folder"
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a JSON file, where tuples are lists."""
    return dict(json.loads(json.dumps(values)))


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    """The fields in which two sets of settings differ, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = dict.fromkeys([*there, *here])
        each = (_differences(there.get(n), here.get(n), f"{path}.{n}".strip(".")) for n in names)
        return [found for several in each for found in several]
    return [] if there == here else [f"{path} is {there!r} there and {here!r} here"]


PLAN = "plan.json"


class FinetuneFolder(TrainingFolder):
    """A folder of one fine-tuning: the same as of a training, with the plan of the pruned network.

    Args:
        path: new, empty, or of the same recipe. Nothing is written before ``create``.
        recipe: what is asked.
        context: what else the result depends on.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, path: Path, *, recipe: FinetuneRecipe, context: Mapping[str, Any]) -> None:
        super().__init__(path, recipe=recipe, context=context, task="a fine-tuning")
        check_free(path, task=self.task)

    def finished(self) -> FinetuneRecord | None:
        """The record of a fine-tuning that has ended."""
        record = self.finished_record()
        try:
            return None if record is None else FinetuneRecord.from_dict(record)
        except ValueError as error:
            raise ValueError(
                f"{self.path / RECORD} is damaged: {error}; delete the folder to start anew"
            ) from error

    def finish_with(self, model: nn.Module, plan: Plan, record: FinetuneRecord) -> None:
        """Write the plan and the model, then the record."""
        plan.save(self.path / PLAN)
        save_model(model, self.model, plan=plan)
        self.finish(record.to_dict())

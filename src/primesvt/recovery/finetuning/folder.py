"""The folder of a fine-tuning: its state while it runs, then the model and the record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from primesvt._files import check_writable, contents, write_json, write_text
from primesvt.artifact import save_model
from primesvt.plan import Plan
from primesvt.recovery.finetuning.record import FinetuneRecord
from primesvt.training.snapshot import Snapshot

__all__ = ["TunedFolder"]

RECIPE, STATE, MODEL, PLAN, RECORD = (
    "recipe.yaml",
    "state.safetensors",
    "model",
    "plan.json",
    "record.json",
)


class TunedFolder:
    """A folder that one question owns: a killed fine-tuning goes on in it.

    Args:
        path: new, empty, or of the same question. Nothing is written before ``create``.
        recipe: what is asked.
        context: what else the result depends on.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(
        self, path: Path, *, recipe: Mapping[str, Any], context: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.question = _plain({**context, "recipe": recipe})
        there = contents(path)
        if path.exists() and (not path.is_dir() or (there and RECIPE not in there)):
            raise ValueError(
                f"cannot write a fine-tuning to {str(path)!r}: it holds something else; "
                "choose a new or empty folder"
            )

    @property
    def model(self) -> Path:
        """The folder of the fine-tuned model."""
        return self.path / MODEL

    def finished(self) -> FinetuneRecord | None:
        """The record of a fine-tuning that has ended, which is written last."""
        path = self.path / RECORD
        if not path.is_file():
            return None
        try:
            record = FinetuneRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged; delete the folder to start anew") from error
        self._check({**record.context, "recipe": record.recipe})
        return record

    def stopped(self) -> Snapshot | None:
        """Where a fine-tuning was stopped."""
        path = self.path / STATE
        if not path.is_file():
            return None
        snapshot = Snapshot.load(path)
        self._check(snapshot.facts["question"])
        return snapshot

    def create(self) -> None:
        """Make the folder and write the recipe."""
        check_writable(self.path)
        text = yaml.safe_dump(self.question["recipe"], sort_keys=False)
        write_text(self.path / RECIPE, text)

    def save(self, snapshot: Snapshot) -> None:
        """Write the state, in place of an older one."""
        facts = {**snapshot.facts, "question": self.question}
        Snapshot(tensors=snapshot.tensors, facts=facts).save(self.path / STATE)

    def finish(self, model: nn.Module, plan: Plan | None, record: FinetuneRecord) -> None:
        """Write the result; the record comes last, then the state goes."""
        if plan is not None:
            plan.save(self.path / PLAN)
        save_model(model, self.model, plan=plan)
        write_json(self.path / RECORD, record.to_dict())
        (self.path / STATE).unlink(missing_ok=True)

    def _check(self, there: Mapping[str, Any]) -> None:
        found = next(iter(_differences(_plain(there), self.question)), "")
        if found:
            raise ValueError(
                f"{self.path} holds a fine-tuning of another question: {found}; "
                "choose another --out, or delete that folder"
            )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file: tuples are lists there."""
    return dict(json.loads(json.dumps(values)))


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    """The fields in which two questions differ, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = dict.fromkeys([*there, *here])
        each = (_differences(there.get(n), here.get(n), f"{path}.{n}".strip(".")) for n in names)
        return [found for several in each for found in several]
    return [] if there == here else [f"{path} is {there!r} there and {here!r} here"]

"""The folder of a fine-tuning: its state while it runs, then the model and the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from primesvt.channels.plan import Plan
from primesvt.checkpoint.folder import save_model
from primesvt.recovery.finetuning.recipe import FinetuneRecipe
from primesvt.recovery.finetuning.record import FinetuneRecord
from primesvt.training.folder import TrainingFolder, check_free

__all__ = ["TunedFolder"]

PLAN = "plan.json"


class TunedFolder(TrainingFolder):
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
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self.path} is damaged (record.json); delete the folder to start anew"
            ) from error

    def finish_with(self, model: nn.Module, plan: Plan, record: FinetuneRecord) -> None:
        """Write the plan and the model, then the record."""
        plan.save(self.path / PLAN)
        save_model(model, self.model, plan=plan)
        self.finish(record.to_dict())

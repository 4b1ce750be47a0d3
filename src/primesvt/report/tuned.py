"""What a fine-tuning made of the pruned network, where there was one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primesvt._format import percent_points
from primesvt.report.run_files import RunFiles

__all__ = ["Tuned", "TunedRow", "tuning"]


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """Top-1 on one set: unpruned, pruned and fine-tuned, and what is lost of the unpruned."""

    name: str
    before: str
    pruned: str
    tuned: str
    change: str


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A row for each set that all three networks were measured on, and how it was done.

    ``epochs`` holds number, loss and accuracy on the selection set; epoch 0 is before fine-tuning.
    """

    rows: tuple[TunedRow, ...]
    notes: tuple[str, ...]
    epochs: tuple[tuple[int, str, str], ...] = ()


def tuning(run: RunFiles) -> Tuned | None:
    """What ``finetuned/record.json`` tells; ``None`` without it, or without an accuracy in it."""
    record = run.tuned or {}
    unpruned = record.get("unpruned") or run.metrics["before"]
    pruned = record.get("before") or run.metrics["after"]
    rows = tuple(
        _row(name, record[name], unpruned[name]["accuracy"], pruned[name]["accuracy"])
        for name in ("test", "selection")
        if record.get(name) and unpruned.get(name) and pruned.get(name)
    )
    if not rows:
        return None
    return Tuned(rows=rows, notes=tuple(_notes(record)), epochs=tuple(_epochs(record)))


def _row(name: str, found: Mapping[str, Any], before: float, pruned: float) -> TunedRow:
    return TunedRow(
        name=f"{name} set of {found['images']:,}",
        before=f"{before:.2%}",
        pruned=f"{pruned:.2%}",
        tuned=f"{found['accuracy']:.2%}",
        change=percent_points(found["accuracy"] - before),
    )


def _epochs(record: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Before fine-tuning there is an accuracy and no loss yet."""
    losses = ["", *(f"{loss:.3f}" for loss in record.get("loss") or ())]
    accuracies = record.get("selection_accuracy") or ()
    for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=False)):
        yield number, loss, f"{accuracy:.2%}"


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    recipe = record.get("recipe") or {}
    said = []
    if recipe.get("epochs"):
        said.append(f"{recipe['epochs']} epochs")
    if record.get("kept_epoch") == 0:
        said.append("no epoch was better than the network before, which is kept")
    elif record.get("kept_epoch") is not None:
        said.append(f"epoch {record['kept_epoch']} kept")
    if recipe.get("learning_rate") is not None:
        said.append(f"learning rate {recipe['learning_rate']:g}")
    if recipe.get("distillation") is not None:
        said.append(f"distillation {recipe['distillation']:g}")
    if said:
        yield f"Fine-tuned: {', '.join(said)}."
    yield from record.get("notes") or ()

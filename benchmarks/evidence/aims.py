"""What was aimed at on CIFAR-10, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evidence.rows import SAVINGS, UNPRUNED

__all__ = ["aims"]

Record = Mapping[str, Any]

INTRODUCTION = """## What was aimed at

On CIFAR-10, `allocate` with refit, fine-tuned for a tenth of the training epochs. *Tuned as long*:
points that the tuned pruned network is below the unpruned network tuned in the same way, which is
what pruning costs where fine-tuning helps an unfinished training. *By itself*: what the search
saves where that many points are its limit, held with confidence and before fine-tuning. An aim much
above it is one that the network does not have the channels to spare for; fine-tuning, here of one
or two epochs, then has to make up for too much. One that is missed by less than the test set can
tell (an interval is about two points wide) says little.

| network | saved | aim | lost, not tuned | lost, tuned | below the unpruned one tuned as long\
 | by itself | |
|---|---|---|---|---|---|---|---|"""


def aims(rows: Sequence[Record]) -> str:
    """A table, or nothing while no row tells."""
    body = list(_lines(rows))
    return "\n".join([INTRODUCTION, *body, ""]) if body else ""


def _lines(rows: Sequence[Record]) -> Iterator[str]:
    allowed = dict(zip(SAVINGS, (None, 1.0, 3.0), strict=True))
    for row in sorted(rows, key=lambda row: (str(row["model"]), float(row["saving"]))):
        asked = (row.get("constraints") or {}).get("min_memory_saving")
        best = (row["policy"], row["recovery"]) == ("allocate", "refit")
        if not best or asked is None or "tuned" not in row or "cifar" not in row["model"]:
            continue
        before, tuned = row["before"]["test"], row["tuned"]["test"]
        lost, points = 100 * (before["accuracy"] - tuned["accuracy"]), allowed[asked]
        met = tuned["accuracy"] >= before["low"] if points is None else lost <= points
        aim = "within its interval" if points is None else f"at most {points:g}"
        over = 100 * (before["low"] - tuned["accuracy"]) if points is None else lost - points
        by = "" if met else f" by {over:.2f}"
        untuned = 100 * (before["accuracy"] - row["after"]["test"]["accuracy"])
        yield (
            f"| {row['model']} | {row['saving']:.2%} | {aim} | {untuned:.2f} | {lost:.2f}"
            f" | {_below_tuned(row, rows)} | {_by_itself(row, rows, points)}"
            f" | {'met' if met else f'missed{by}'} |"
        )


def _by_itself(row: Record, rows: Sequence[Record], points: float | None) -> str:
    """What the same policy saves within so many points."""
    for other in rows:
        same = all(other[name] == row[name] for name in ("model", "policy", "recovery"))
        limits = other.get("constraints") or {}
        asked = limits.get("max_accuracy_drop") == points and not limits.get("stop_at_saving")
        if same and asked:
            return f"{other['saving']:.2%}"
    return ""


def _below_tuned(row: Record, rows: Sequence[Record]) -> str:
    for other in rows:
        if other["model"] == row["model"] and other["policy"] == UNPRUNED:
            whole, pruned = (each["tuned"]["test"]["accuracy"] for each in (other, row))
            return f"{100 * (whole - pruned):.2f}"
    return ""

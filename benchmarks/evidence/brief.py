"""The comparison that the README shows: one network, one accuracy limit, every policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evidence.rows import PAPER, POLICIES

__all__ = ["brief"]

Record = Mapping[str, Any]
GOAL = "3 points"
ORDER = (PAPER, "prime", "psvit", "uniform", "random", "global", "allocate")


def brief(rows: Sequence[Record]) -> str:
    """A table of what each policy saves, or nothing while a policy is missing.

    Of the first network for CIFAR-10 that all policies were tried on.
    """
    for name in sorted({row["model"] for row in rows if "cifar" in row["model"]}):
        own = [row for row in rows if row["model"] == name and row["goal"] == GOAL]
        if {row["policy"] for row in own} >= {*POLICIES, PAPER}:
            return _table(name, own)
    return ""


def _table(name: str, rows: Sequence[Record]) -> str:
    test = rows[0]["before"]["test"]
    lines = [
        f"| {name}: {test['accuracy']:.1%} | recovery | memory saved | test points lost"
        " | lost, fine-tuned |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["recovery"], ORDER.index(row["policy"]))):
        lines.append(
            f"| {row['policy']} | {row['recovery']} | {row['saving']:.1%} | {_lost(row, 'after')}"
            f" | {_lost(row, 'tuned') if 'tuned' in row else ''} |"
        )
    return "\n".join(lines)


def _lost(row: Record, when: str) -> str:
    before, after = row["before"]["test"]["accuracy"], row[when]["test"]["accuracy"]
    return f"{100 * (before - after):.2f}"

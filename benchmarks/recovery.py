"""Accuracy against memory saved at uniform rates: which channels go, and what makes up for them.

    python benchmarks/recovery.py [CIFAR-FOLDER]      # results/recovery.json and .md

Every network is cut at one rate in all groups, so that just the criterion and the recovery differ:
no search, no gate, no label. Each row looks at the test set once. Digits are three training seeds;
intervals are Wilson intervals at 95 % over all test images of a cell (seeds pooled).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from checkpoints import Case, cases, uniform
from machine import RESULTS, described, save

from primesvt.evaluation.confidence import wilson_interval
from primesvt.registry import CRITERIA, RECOVERIES

STEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
FULL = ("random", "l2", "activity", "obs")
FEW = (0.25, 0.5)


def plan() -> Iterator[tuple[str, str, float]]:
    """Criterion, recovery and memory saved of every row of one network."""
    for importance in CRITERIA.names():
        for recovery in RECOVERIES.names():
            for saving in sorted({*FEW, *(STEPS if importance in FULL else ())}):
                yield importance, recovery, saving


def measure(case: Case, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of one network that are not known yet."""
    done = {(r["model"], r["importance"], r["recovery"], r["asked"]) for r in known}
    before = case.test(case.model) if any(c not in done for c in _keys(case)) else None
    for importance, recovery, saving in plan():
        if (case.name, importance, recovery, saving) in done or before is None:
            continue
        start = time.perf_counter()
        prober = case.prober(importance, recovery)
        cuts = uniform(prober, case.groups, saving)
        after = case.test(prober.cut(cuts))
        yield {
            "model": case.name,
            "data": "digits" if case.data == "digits" else "cifar10",
            "importance": importance,
            "recovery": recovery,
            "asked": saving,
            "saved": prober.bytes_saved(cuts) / prober.reference.parameter_bytes,
            "images": len(after),
            "right_before": int(before.sum()),
            "right": int(after.sum()),
            "lost": int((before & ~after).sum()),
            "gained": int((~before & after).sum()),
            "seconds": round(time.perf_counter() - start, 1),
        }


def _keys(case: Case) -> list[tuple[str, str, str, float]]:
    return [(case.name, *row) for row in plan()]


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table per data set: a line per criterion and recovery, a column per saving."""
    parts = [
        "# Criterion and recovery at uniform rates\n",
        "Made by `python benchmarks/recovery.py`, which says what is measured. Test accuracy in %,"
        " with its 95 % interval; `refit` includes batch norm. Nothing is trained.\n",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        parts.append(_table(data, [row for row in rows if row["data"] == data]))
    return "\n".join([*parts, f"{described()}.", ""])


def _table(data: str, rows: list[dict[str, Any]]) -> str:
    models = list(dict.fromkeys(row["model"] for row in rows))
    first = {row["model"]: row for row in rows}
    images = sum(row["images"] for row in first.values())
    right = sum(row["right_before"] for row in first.values())
    savings = sorted({row["asked"] for row in rows})
    lines = [
        f"## {data}: {', '.join(models)}\n",
        f"Unpruned: {right / images:.2%} of {images:,} test images.\n",
        f"| criterion | recovery | {' | '.join(f'{s:.0%} saved' for s in savings)} |",
        f"|---|---|{'---|' * len(savings)}",
    ]
    for importance in CRITERIA.names():
        for recovery in RECOVERIES.names():
            mine = [r for r in rows if (r["importance"], r["recovery"]) == (importance, recovery)]
            cells = [_cell([r for r in mine if r["asked"] == saving]) for saving in savings]
            lines.append(f"| {importance} | {recovery} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    right, images = sum(r["right"] for r in rows), sum(r["images"] for r in rows)
    low, high = wilson_interval(right, images)
    return f"{100 * right / images:.1f} ({100 * low:.1f}..{100 * high:.1f})"


def main() -> None:
    torch.set_num_threads(1)
    path = RESULTS / "recovery.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for case in cases(sys.argv[1] if len(sys.argv) > 1 else None):
        for row in measure(case, rows):
            rows.append(row)
            print(*(row[k] for k in ("model", "importance", "recovery", "asked", "right")))
            save("recovery", rows)
        (RESULTS / "recovery.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

"""What each part of the method is worth, end to end: policy, criterion, recovery, gate.

    python benchmarks/presets.py [CIFAR-FOLDER] [ROW ...]     # results/presets.json and .md

Every row is a whole run of ``primesvt.prune`` under the same limit (3 points), on the same
selection images (5,000, in memory; digits 450), and looks at the test set once. Rows that are in
presets.json are not made again; ``ROW`` names some of ROWS. One thread a process: two may run side
by side, each with its own rows.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import sys
import time
from typing import Any

import torch
from checkpoints import CIFAR, DIGITS, Case
from machine import RESULTS, described, save
from torch.utils.data import DataLoader, Subset, TensorDataset

from primesvt import Constraints, prune

PAPER = {
    "policy": "prime",
    "importance": "l2",
    "recovery": "none",
    "gate": "point",
    "lossless": False,
    "exact": True,
}
BEST = {"policy": "allocate", "importance": "obs", "recovery": "refit", "gate": "bound"}
ROWS: dict[str, dict[str, Any]] = {
    "paper, reading A": {**PAPER, "policy_options": {"reading": "A"}, "confirm": False},
    "paper, reading B": {**PAPER, "policy_options": {"reading": "B"}, "confirm": False},
    "paper A + bound": {**PAPER, "gate": "bound", "confirm": True},
    "paper A + bn": {**PAPER, "recovery": "bn", "confirm": False},
    "paper A + obs + refit": {**PAPER, "importance": "obs", "recovery": "refit", "confirm": False},
    "prime + obs + refit, bound": {**BEST, "policy": "prime"},
    "allocate + l2, point": {**PAPER, "policy": "allocate", "confirm": False},
    "best": BEST,
    "best, activity": {**BEST, "importance": "activity"},
    "best, l2": {**BEST, "importance": "l2"},
    "best, bn": {**BEST, "recovery": "bn"},
    "best, none": {**BEST, "recovery": "none"},
    "best, point": {**BEST, "gate": "point", "confirm": False},
    "best, not confirmed": {**BEST, "confirm": False},
    "best, streams": {**BEST, "include_streams": True},
    "best, exact": {**BEST, "exact": True},
    "paper's saving": {**BEST, "stop": 0.2668},
    "paper's saving, prime + l2 + none": {**PAPER, "confirm": False, "stop": 0.2668},
    "best, no lossless": {**BEST, "lossless": False},
    **{f"best, images drawn by seed {seed}": {**BEST, "seed": seed} for seed in (1, 2, 3, 4)},
}
LIMIT = 3.0


def in_memory(dataset: Any, most: int | None = None) -> TensorDataset:
    """A data set decoded once, spread evenly where only some are taken."""
    size = len(dataset)
    if most is not None and most < size:
        dataset = Subset(dataset, [i * size // most for i in range(most)])
    images, labels = zip(*DataLoader(dataset, batch_size=500), strict=True)
    return TensorDataset(torch.cat(images), torch.cat(labels))


def measure(case: Case, name: str) -> dict[str, Any]:
    """One run."""
    options = dict(ROWS[name])
    stop = options.pop("stop", None)
    splits = dataclasses.replace(
        case.splits,
        calibration=in_memory(case.splits.calibration),
        selection=in_memory(case.splits.selection),
        test=in_memory(case.splits.test),
    )
    start = time.perf_counter()
    result = prune(
        case.model,
        data=splits,
        constraints=Constraints(
            max_accuracy_drop=LIMIT, min_memory_saving=stop, stop_at_saving=stop is not None
        ),
        batch_size=case.batch_size,
        **options,
    )
    metrics = result.metrics.to_dict()
    return {
        "model": case.name,
        "row": name,
        "options": ROWS[name],
        "saving": metrics["saving"],
        "drop": metrics["drop"],
        "bound": metrics["bound"],
        "confirmation": metrics["confirmation"],
        "before": metrics["before"],
        "after": metrics["after"],
        "probes": len(result.probes),
        "seconds": round(time.perf_counter() - start, 1),
    }


def add(row: dict[str, Any]) -> None:
    """Into the file, which another process may be writing to."""
    with (RESULTS / ".presets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = RESULTS / "presets.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        key = (row["model"], row["row"])
        rows = [r for r in rows if (r["model"], r["row"]) != key]
        order = list(ROWS)
        rows = sorted([*rows, row], key=lambda r: (r["model"], order.index(r["row"])))
        save("presets", rows)
        (RESULTS / "presets.md").write_text(markdown(rows))


def known() -> set[tuple[str, str]]:
    path = RESULTS / "presets.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(row["model"], row["row"]) for row in rows}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Policy, criterion, recovery and gate, end to end\n",
        f"Made by `python benchmarks/presets.py`, limit {LIMIT:g} points, nothing trained. The test"
        " set decided nothing. Other processes shared the cores, so seconds are no comparison.\n",
        "| model | row | memory saved | selection drop, bound | confirmation drop, bound"
        " | test before, after (95 %) | test drop | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        test, before = row["after"]["test"], row["before"]["test"]
        seen = row["confirmation"]
        told = f"{100 * seen['drop']:.2f}, {100 * seen['bound']:.2f}" if seen else ""
        bound = "" if row["bound"] is None else f", {100 * row['bound']:.2f}"
        lines.append(
            f"| {row['model']} | {row['row']} | {row['saving']:.2%}"
            f" | {100 * row['drop']:.2f}{bound} | {told}"
            f" | {before['accuracy']:.2%}, {test['accuracy']:.2%}"
            f" ({test['low']:.1%} .. {test['high']:.1%})"
            f" | {100 * (before['accuracy'] - test['accuracy']):.2f} | {row['seconds']:g} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def main() -> None:
    torch.set_num_threads(1)
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    names = sys.argv[2:] or list(ROWS)
    cases = [Case(source=source, data="digits", batch_size=450) for source in DIGITS]
    if folder not in (None, "digits"):
        cases = [Case(source=CIFAR, data=str(folder))]
    for case in cases:
        for name in names:
            if (case.name, name) not in known():
                add(row := measure(case, name))
                print(case.name, name, f"{row['saving']:.2%}", row["seconds"], flush=True)


if __name__ == "__main__":
    main()

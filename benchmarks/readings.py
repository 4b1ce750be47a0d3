"""What the paper's method reaches on the digits model, in both readings, with both gates.

    python benchmarks/readings.py         # writes benchmarks/results/readings.{json,md}

The first row is a full run on one thread; the others are solved again from its probes, which gives
what a full run would (tests/method/test_prune.py). The test set is reported and decides nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, described, save

from primesvt import Constraints, create_model, prune

ROWS: tuple[tuple[float, float | None, str, str, float], ...] = (
    # points allowed, memory asked, reading, gate, target threshold
    (3.0, 0.25, "A", "point", 0.0),
    (3.0, 0.25, "B", "point", 0.0),
    (3.0, 0.25, "A", "bound", 0.0),
    (3.0, 0.25, "B", "bound", 0.0),
    (3.0, 0.25, "A", "point", 0.25),
    (2.0, None, "A", "point", 0.0),
    (2.0, None, "A", "bound", 0.0),
)


def measure(folder: Path, row: int) -> dict[str, Any]:
    """Prune under one row's limits; ``seconds`` of a re-solved row are those of its walk."""
    points, memory, reading, gate, threshold = ROWS[row]
    start = time.perf_counter()
    result = prune(
        create_model("sdt_v2_digits", pretrained=True),
        data="digits",
        constraints=Constraints(max_accuracy_drop=points, min_memory_saving=memory),
        policy="prime",
        importance="l2",
        recovery="none",
        confirm=False,
        lossless=False,
        policy_options={"reading": reading, "target_threshold": threshold},
        gate=gate,
        batch_size=450,
        out=folder / str(row),
        from_run=folder / "0" if row else None,
    )
    metrics = result.metrics.to_dict()
    return {
        "points_allowed": points,
        "memory_asked": memory,
        "reading": reading,
        "gate": gate,
        "target_threshold": threshold,
        "met": result.met,
        "saving": metrics["saving"],
        "before": metrics["before"],
        "after": metrics["after"],
        "verdict": result.verdict,
        "seconds": round(time.perf_counter() - start, 1),
        "probes": "made" if row == 0 else "taken from the first row",
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| limits | reading, gate, threshold | saved | selection before, after "
        "| test before, after (95 %) | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        asked = "" if row["memory_asked"] is None else f", {row['memory_asked']:.0%} saved"
        before, after = row["before"], row["after"]
        test = after["test"]
        lines.append(
            f"| {row['points_allowed']:g} points{asked} "
            f"| {row['reading']}, {row['gate']}, {row['target_threshold']:g} "
            f"| {row['saving']:.2%}{'' if row['met'] else ' (not met)'} "
            f"| {before['selection']['accuracy']:.2%}, {after['selection']['accuracy']:.2%} "
            f"| {before['test']['accuracy']:.2%}, {test['accuracy']:.2%} "
            f"({test['low']:.1%} .. {test['high']:.1%}) | {row['seconds']:g} |"
        )
    return "\n".join([*lines, "", f"Measured by `benchmarks/readings.py` on: {described()}.", ""])


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(ROWS)):
            rows.append(measure(Path(folder), number))
            print(rows[-1]["verdict"])
            save("readings", rows)
            (RESULTS / "readings.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

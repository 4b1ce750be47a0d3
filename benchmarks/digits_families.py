"""The published method, end to end, on one small trained model of every family.

    python benchmarks/digits_families.py [FOLDER]     # results/digits_families.json and .md

Each model is trained on the digits by recipes/digits.yaml (one thread; what is trained in FOLDER is
not trained again), then pruned twice from the same probes: as the paper reads (3 points, point
gate, reading A), and with a 95 % bound on the drop (2 points). The test set decides nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, described, save

from primesvt import Constraints, load, prune
from primesvt.training import read_train_recipe, train

RECIPE = Path(__file__).parent.parent / "recipes" / "digits.yaml"
MODELS = (
    "sdt_v1_digits",
    "spikformer_digits",
    "spikingformer_digits",
    "qkformer_digits",
    "spikingresformer_digits",
)
LIMITS = ((3.0, "point"), (2.0, "bound"))


def trained(name: str, folder: Path) -> float | None:
    """Train one model unless its record is there; seconds it took, if known."""
    out = folder / name
    if (out / "record.json").is_file():
        return None
    start = time.perf_counter()
    train(read_train_recipe(RECIPE).changed(model=name), out_dir=out)
    return time.perf_counter() - start


def measure(name: str, folder: Path) -> list[dict[str, Any]]:
    """Prune one trained model under every limit."""
    rows = []
    first = folder / f"{name}-pruned-0"
    for number, (points, gate) in enumerate(LIMITS):
        start = time.perf_counter()
        result = prune(
            load(folder / name),
            data="digits",
            constraints=Constraints(max_accuracy_drop=points, min_memory_saving=None),
            policy="prime",
            importance="l2",
            recovery="none",
            confirm=False,
            lossless=False,
            gate=gate,
            batch_size=450,
            out=folder / f"{name}-pruned-{number}",
            from_run=first if number else None,
        )
        metrics = result.metrics.to_dict()
        rows.append(
            {
                "model": name,
                "parameters": metrics["before"]["parameters"],
                "points_allowed": points,
                "gate": gate,
                "met": result.met,
                "saving": metrics["saving"],
                "before": metrics["before"],
                "after": metrics["after"],
                "seconds": round(time.perf_counter() - start, 1),
                "probes": "taken from the row above" if number else "made",
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| model | parameters | limit | saved | selection before, after"
        " | test before, after (95 %) | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = row["before"], row["after"]
        test = after["test"]
        lines.append(
            f"| {row['model']} | {row['parameters']:,} | {row['points_allowed']:g} points,"
            f" {row['gate']} | {row['saving']:.2%}{'' if row['met'] else ' (not met)'}"
            f" | {before['selection']['accuracy']:.2%}, {after['selection']['accuracy']:.2%}"
            f" | {before['test']['accuracy']:.2%}, {test['accuracy']:.2%}"
            f" ({test['low']:.1%} .. {test['high']:.1%}) | {row['seconds']:g} |"
        )
    note = "Seconds of a bound row are those of its walk: its probes are the row's above."
    return "\n".join(
        [*lines, "", note, f"Measured by `benchmarks/digits_families.py` on: {described()}.", ""]
    )


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        for name in MODELS:
            print(name, "trained in", trained(name, folder), flush=True)
            rows += measure(name, folder)
            print(rows[-2:], flush=True)
            save("digits_families", rows)
            (RESULTS / "digits_families.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

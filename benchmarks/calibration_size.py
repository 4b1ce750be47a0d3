"""How many unlabeled images the recovery needs.

    python benchmarks/calibration_size.py [CIFAR-FOLDER]    # results/calibration_size.json and .md

Uniform rates, half of the memory saved, ``obs`` with each recovery; calibration images are drawn
from the training images by three seeds. Each row looks at the test set once.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from checkpoints import CIFAR, Case, uniform
from machine import RESULTS, described, save

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
SEEDS = (0, 1, 2)
SAVING = 0.5


def measure(source: Any, data: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Both recoveries from one draw."""
    case = Case(source=source, data=data, batch_size=256, images=size, seed=seed)
    rows = []
    for recovery in ("bn", "refit"):
        prober = case.prober("obs", recovery)
        right = case.test(prober.cut(uniform(prober, case.groups, SAVING)))
        rows.append(
            {
                "model": case.name,
                "images": size,
                "seed": seed,
                "recovery": recovery,
                "accuracy": float(right.mean()),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Calibration images against accuracy\n",
        f"Made by `python benchmarks/calibration_size.py`: {SAVING:.0%} of the memory saved,"
        " uniform rates, obs. Test accuracy in %, mean and range over three draws.\n",
        f"| model | recovery | {' | '.join(map(str, SIZES))} |",
        f"|---|---|{'---|' * len(SIZES)}",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        for recovery in ("bn", "refit"):
            cells = []
            for size in SIZES:
                key = (model, recovery, size)
                found = [
                    100 * r["accuracy"]
                    for r in rows
                    if (r["model"], r["recovery"], r["images"]) == key
                ]
                mean = f"{sum(found) / len(found):.1f}" if found else ""
                cells.append(f"{mean} ({min(found):.1f}..{max(found):.1f})" if found else "")
            lines.append(f"| {model} | {recovery} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{described()}.", ""])


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    networks: list[tuple[Any, str, int]] = [("sdt_v2_digits", "digits", 512)]
    networks += [(CIFAR, sys.argv[1], 2048)] if len(sys.argv) > 1 else []
    for source, data, most in networks:
        for size in (n for n in SIZES if n <= most):
            for seed in SEEDS:
                rows += measure(source, data, size, seed)
                print(rows[-1], flush=True)
        save("calibration_size", rows)
        (RESULTS / "calibration_size.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

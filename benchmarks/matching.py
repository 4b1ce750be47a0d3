"""What fitting every layer to the dense network gives back, at equal plans.

    python benchmarks/matching.py CIFAR-FOLDER [--images 512]        # results/matching.{md,json}

Every network is cut at one rate in all groups, by the same ranking (`obs`), so that the recovery
alone differs: `bn` re-estimates batch norms, `refit` replaces lost inputs by least squares first,
`match` then fits every layer to its outputs in the dense network. Nothing is trained, no label is
used. Each row looks at the test set once; the gain of `match` over `refit` is a paired difference
with its 95 % interval (normal approximation over images). Processor seconds of one cut.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from checkpoints import CHECKPOINTS, Case, uniform
from machine import RESULTS, described, save

NETWORKS = (
    "cifar10_sdt_v2_seed0",
    "cifar10_sdt_v2_seed1",
    "cifar10_sdt_v2_seed2",
    "cifar10_qkformer_seed0",
    "cifar10_spikformer_seed0",
)
SAVINGS = (0.5, 0.6, 0.7, 0.8)
RECOVERED = ("bn", "refit", "match")


def measure(case: Case, saving: float) -> dict[str, Any] | None:
    """The accuracies of one network at one saving; ``None`` where no uniform rate reaches it."""
    row: dict[str, Any] = {"model": case.name, "saved": saving}
    found: dict[str, np.ndarray[Any, np.dtype[np.bool_]]] = {}
    for recovery in RECOVERED:
        prober = case.prober("obs", recovery)
        try:
            cuts = uniform(prober, case.groups, saving)
        except ValueError:  # the groups hold less than that
            return None
        begin = time.process_time()
        network = prober.cut(cuts)
        row[f"{recovery}_seconds"] = round(time.process_time() - begin, 1)
        found[recovery] = case.test(network)
        row[recovery] = float(found[recovery].mean())
    gain = found["match"].astype(float) - found["refit"].astype(float)
    row["gain"] = float(gain.mean())
    row["half_width"] = float(1.96 * gain.std() / len(gain) ** 0.5)
    return row


def markdown(rows: list[dict[str, Any]], images: int) -> str:
    """A line per network and saving."""
    lines = [
        "# Fitting every layer to the dense network, at equal plans\n",
        "`python benchmarks/matching.py`, which says what is measured; "
        f"{images} calibration images, test accuracy in %.\n",
        "| Network | Unpruned | Saved | bn | refit | match | match - refit | Seconds, refit "
        "| match |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for r in rows:
        low, high = (100 * (r["gain"] + side * r["half_width"]) for side in (-1, 1))
        cells = " | ".join(f"{100 * r[name]:.1f}" for name in RECOVERED)
        lines.append(
            f"| {r['model']} | {100 * r['unpruned']:.1f} | {r['saved']:.0%} | {cells} | "
            f"{100 * r['gain']:+.1f} ({low:+.1f} .. {high:+.1f}) | {r['refit_seconds']} | "
            f"{r['match_seconds']} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar")
    parser.add_argument("--images", type=int, default=512)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "matching.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {"rows": []}
    rows = known["rows"] if known.get("images") == asked.images else []
    done = {(row["model"], row["saved"]) for row in rows}
    for name in NETWORKS:
        case = Case(source=CHECKPOINTS / name, data=asked.cifar, images=asked.images)
        left = [saving for saving in SAVINGS if (name, saving) not in done]
        unpruned = float(case.test(case.model).mean()) if left else 0.0
        for saving in left:
            found = measure(case, saving)
            if found is None:
                continue
            rows.append({**found, "unpruned": unpruned})
            print(rows[-1], flush=True)
            save("matching", {"images": asked.images, "rows": rows})
    (RESULTS / "matching.md").write_text(markdown(rows, asked.images))


if __name__ == "__main__":
    main()

"""What a limit on time is worth: plans that count memory alone, and plans that count time too.

    python benchmarks/latency.py CIFAR-FOLDER [IMAGES]      # results/latency.json and .md

Every row is a whole run of ``primesvt.prune`` on the CIFAR-10 checkpoint, within 3 points, with at
least 40 % of the memory saved; IMAGES is how many selection images it sees (all, when not given).
Its folder under runs/latency is kept, so a stopped benchmark goes on. Then all networks are timed
together, in changing order, beside the unpruned one: a speed-up is the ratio of two neighbouring
runs, and stands beside what the multiply-accumulates allow. One thread.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import CIFAR, ROOT, Case
from machine import RESULTS, described, save
from presets import in_memory

from primesvt import Constraints, prune
from primesvt.energy import count_operations
from primesvt.latency import BATCHES, Pace
from primesvt.latency.timing import batched, race_networks
from primesvt.models import SpikingViT
from primesvt.pruning import PruneResult

POINTS, SAVING, SHARE = 3.0, 0.4, 0.64  # 1 / 0.64 is a little more than the 1.5 that is asked for
PACE = Pace(seconds=120, least=30, most=200)
ROWS: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory and time": {"max_latency": SHARE},
    "memory, multiples of 8": {"channel_multiple": 8},
    "memory and time, multiples of 8": {"max_latency": SHARE, "channel_multiple": 8},
    "memory and time, multiples of 16": {"max_latency": SHARE, "channel_multiple": 16},
}


def run(case: Case, name: str, images: int | None) -> PruneResult:
    """One run, in a folder of its own."""
    options = dict(ROWS[name])
    limits = {"max_latency": options.pop("max_latency", None)}
    splits = dataclasses.replace(
        case.splits,
        calibration=in_memory(case.splits.calibration),
        selection=in_memory(case.splits.selection, images),
        test=in_memory(case.splits.test),
    )
    folder = ROOT / "runs" / "latency" / f"{name.replace(',', '').replace(' ', '-')}-{images}"
    return prune(
        case.model,
        data=splits,
        constraints=Constraints(max_accuracy_drop=POINTS, min_memory_saving=SAVING, **limits),
        batch_size=case.batch_size,
        out=folder,
        **options,
    )


def timed(networks: dict[str, SpikingViT], inputs: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """Milliseconds and speed-ups of all networks at every batch size, timed together."""
    found: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for batch in BATCHES:
        sized = batched(inputs, batch)
        times = race_networks({name: (model, sized) for name, model in networks.items()}, PACE)
        whole = times["unpruned"]
        for name, seconds in times.items():
            found[name][str(batch)] = {
                "runs": len(seconds),
                "milliseconds": (1e3 * np.quantile(seconds, (0.25, 0.5, 0.75))).tolist(),
                "speedup": np.quantile(whole / seconds, (0.25, 0.5, 0.75)).tolist(),
            }
    return found


def rows(case: Case, images: int | None) -> list[dict[str, Any]]:
    results = {}
    for name in ROWS:
        results[name] = run(case, name, images)
        print(name, results[name].verdict, flush=True)
    networks = {"unpruned": case.model} | {name: r.model for name, r in results.items()}
    inputs = (in_memory(case.splits.calibration, 64).tensors[0],)
    times = timed(networks, inputs)
    macs = {name: count_operations(model, [inputs]).macs for name, model in networks.items()}
    before = next(iter(results.values())).metrics.before
    found = []
    for name in networks:
        metrics = results[name].metrics if name in results else None
        costs = metrics.after if metrics else before
        found.append(
            {
                "row": name,
                "options": ROWS.get(name, {}),
                "met": metrics.met if metrics else None,
                "saving": metrics.saving if metrics else 0.0,
                "test": dataclasses.asdict(costs.test) if costs.test else None,
                "macs": macs[name],
                "mac_ratio": macs["unpruned"] / macs[name],
                "membrane_bytes": costs.membrane_bytes_per_sample,
                "times": times[name],
                "widths": {s.group: list(s.after) for s in results[name].plan.steps}
                if metrics
                else {},
            }
        )
    return found


def page(found: list[dict[str, Any]]) -> str:
    """The table: what was saved, what it cost, how much faster, and how much could be had."""
    before = found[0]["test"]["accuracy"]
    batch = str(BATCHES[-1])
    lines = [
        "# Plans that count memory, and plans that count time too\n",
        "Made by `python benchmarks/latency.py CIFAR-FOLDER`: cifar10_seed0, at least"
        f" {SAVING:.0%} of the memory saved, within {POINTS:g} points; where time is limited, to"
        f" {SHARE:g} of the unpruned network's at a batch of {batch}. Speed-ups: medians"
        " (quartiles) of neighbouring runs of all networks in turn; the share is that of the ratio"
        " of multiply-accumulates.\n",
        "| plan | limits met | memory saved | test drop | MAC ratio"
        " | speed-up, batch 1 | batch 32 | share of the MAC ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found[1:]:
        one, many = (row["times"][str(size)]["speedup"] for size in BATCHES)
        lines.append(
            f"| {row['row']} | {'yes' if row['met'] else 'no'} | {row['saving']:.1%}"
            f" | {100 * (before - row['test']['accuracy']):.2f} | {row['mac_ratio']:.2f}"
            f" | {_spread(one)} | {_spread(many)} | {many[1] / row['mac_ratio']:.0%} |"
        )
    whole = found[0]["times"]
    told = ", ".join(f"{whole[size]['milliseconds'][1]:.1f} ms at {size}" for size in whole)
    runs = " and ".join(str(whole[size]["runs"]) for size in whole)
    return "\n".join([*lines, "", f"Unpruned: {told}; {runs} runs of each. {described()}.", ""])


def _spread(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f} .. {high:.2f})"


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit(__doc__)
    images = int(sys.argv[2]) if len(sys.argv) > 2 else None
    found = rows(Case(source=CIFAR, data=sys.argv[1]), images)
    save("latency", found)
    (RESULTS / "latency.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()

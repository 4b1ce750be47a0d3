"""What a limit on time is worth: plans that count memory alone, and plans that count time too.

    python benchmarks/latency.py CIFAR-FOLDER [IMAGES [ROW ...]]   # results/latency.json and .md

Every row is a whole run of ``primesvt.prune`` on the CIFAR-10 checkpoint, within 3 points, with at
least 40 % of the memory saved; IMAGES is how many selection images it sees (all, when not given or
0), ROW names some of ROWS. Each run's folder under runs/latency is kept, so a stopped benchmark
goes on. Then all networks are timed together, in changing order, beside the unpruned one, as they
are and with batch norms folded into layers: a speed-up is the ratio of two neighbouring runs, and
stands beside what the multiply-accumulates allow. One thread, and its processor time, which is the
time on a quiet machine; wall time stands beside it.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import CIFAR, ROOT, Case
from machine import RESULTS, described, save
from presets import in_memory
from torch import nn

from primesvt import Constraints, prune
from primesvt.energy import count_operations
from primesvt.exporting.folding import fold_norms
from primesvt.latency import BATCHES, Pace
from primesvt.latency.timing import batched, race_networks
from primesvt.pruning import PruneResult

POINTS, SAVING, SHARE = 3.0, 0.4, 0.64  # 1 / 0.64 is a little more than the 1.5 that is asked for
PACE = Pace(seconds=120, least=20, most=150)
CLOCKS = {"processor": time.thread_time, "wall": time.perf_counter}
ROWS: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory and time": {"max_latency": SHARE},
    "memory, streams": {"include_streams": True},
    "memory and time, streams": {"max_latency": SHARE, "include_streams": True},
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


def timed(networks: dict[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """Milliseconds and speed-ups of all networks at every batch size, by both clocks."""
    found: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for batch in BATCHES:
        parts = {name: (model, batched(inputs, batch)) for name, model in networks.items()}
        for clock, seconds in CLOCKS.items():
            times = race_networks(parts, dataclasses.replace(PACE, clock=seconds))
            for name, own in times.items():
                found[name][f"{batch}, {clock}"] = {
                    "runs": len(own),
                    "milliseconds": (1e3 * np.quantile(own, (0.25, 0.5, 0.75))).tolist(),
                    "speedup": np.quantile(times["unpruned"] / own, (0.25, 0.5, 0.75)).tolist(),
                }
    return found


def folded(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """A copy whose batch norms went into the layers before them."""
    smaller = copy.deepcopy(model)
    fold_norms(smaller, batched(inputs, 2))
    return smaller


def rows(case: Case, names: Sequence[str], images: int | None) -> list[dict[str, Any]]:
    results = {}
    for name in names:
        results[name] = run(case, name, images)
        print(name, results[name].verdict, flush=True)
    networks = {"unpruned": case.model} | {name: r.model for name, r in results.items()}
    inputs = (in_memory(case.splits.calibration, 64).tensors[0],)
    times = timed(networks, inputs)
    lean = timed({name: folded(model, inputs) for name, model in networks.items()}, inputs)
    macs = {name: count_operations(model, [inputs]).macs for name, model in networks.items()}
    before = next(iter(results.values())).metrics.before
    found = []
    for name in networks:
        result = results.get(name)
        costs = result.metrics.after if result else before
        row = {
            "row": name,
            "options": ROWS.get(name, {}),
            "met": result.metrics.met if result else None,
            "saving": result.metrics.saving if result else 0.0,
            "test": dataclasses.asdict(costs.test) if costs.test else None,
            "macs": macs[name],
            "mac_ratio": macs["unpruned"] / macs[name],
            "membrane_bytes": costs.membrane_bytes_per_sample,
            "times": times[name],
            "times_folded": lean[name],
            "widths": {s.group: list(s.after) for s in result.plan.steps} if result else {},
        }
        found.append(row)
    return found


def page(found: list[dict[str, Any]]) -> str:
    """The table: what was saved, what it cost, how much faster, and how much could be had."""
    before = found[0]["test"]["accuracy"]
    one, many = (f"{batch}, processor" for batch in BATCHES)
    lines = [
        "# Plans that count memory, and plans that count time too\n",
        "Made by `python benchmarks/latency.py CIFAR-FOLDER`: cifar10_seed0, at least"
        f" {SAVING:.0%} of the memory saved, within {POINTS:g} points; where time is limited, to"
        f" {SHARE:g} of the unpruned network's at a batch of {BATCHES[-1]}. Speed-ups: medians"
        " (quartiles) of neighbouring runs of all networks in turn, by processor time of one"
        " thread; the share is that of the ratio of multiply-accumulates.\n",
        "| plan | limits met | memory saved | test drop | MAC ratio | batch 1 | batch 32 | share"
        " | batch 32, norms folded | share | batch 32, wall time |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found[1:]:
        plain, lean = row["times"], row["times_folded"]
        shares = [each[many]["speedup"][1] / row["mac_ratio"] for each in (plain, lean)]
        lines.append(
            f"| {row['row']} | {'yes' if row['met'] else 'no'} | {row['saving']:.1%}"
            f" | {100 * (before - row['test']['accuracy']):.2f} | {row['mac_ratio']:.2f}"
            f" | {_spread(plain[one])} | {_spread(plain[many])} | {shares[0]:.0%}"
            f" | {_spread(lean[many])} | {shares[1]:.0%}"
            f" | {_spread(plain[f'{BATCHES[-1]}, wall'])} |"
        )
    whole = found[0]["times"]
    told = "; ".join(
        f"batch {size}: {each['milliseconds'][1]:.1f} ms, {each['runs']} runs of each"
        for size, each in whole.items()
    )
    return "\n".join([*lines, "", f"Unpruned, {told}. {described()}.", ""])


def _spread(times: dict[str, Any]) -> str:
    low, middle, high = times["speedup"]
    return f"{middle:.2f} ({low:.2f} .. {high:.2f})"


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit(__doc__)
    images = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    names = sys.argv[3:] or list(ROWS)
    found = rows(Case(source=CIFAR, data=sys.argv[1]), names, images or None)
    save("latency", found)
    (RESULTS / "latency.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()

"""What a limit on time is worth: plans that count memory alone, and plans that count time too.

    python benchmarks/latency.py DATA [IMAGES [ROW ...]]   # results/latency.json and .md

DATA is ``digits``, for the bundled network, or a folder with CIFAR-10, for that checkpoint; a
second call adds its network to the first one's. Every row is a whole run of ``primesvt.prune``
within 3 points, with at least 40 % of the memory saved; a limit on time is one on that of the
exported file in onnxruntime. IMAGES is how many selection images it sees
(all, when not given or 0), ROW names some of ROWS. Each run's folder under runs/latency is kept, so
a stopped benchmark goes on. Then all networks are timed together, in changing order, beside the
unpruned one: in PyTorch as they are, and as ONNX files in onnxruntime, which has batch norms folded
and spends less on each operator. A speed-up is the ratio of two neighbouring runs, and stands
beside what the multiply-accumulates allow. One thread, and its processor time, which is the time on
a quiet machine; wall time stands beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import CIFAR, DIGITS, ROOT, Case
from machine import RESULTS, described, save
from presets import in_memory
from quoting import quote
from torch import nn

from primesvt import Constraints, export, prune
from primesvt.exporting.runtime import Runner, onnx_runner
from primesvt.profiling.operations import count_operations
from primesvt.profiling.timing import BATCHES, Pace, Seconds, batched, race, race_networks
from primesvt.pruning.result import PruneResult

POINTS, SAVING, SHARE = 3.0, 0.4, 0.64  # 1 / 0.64 is a little more than the 1.5 that is asked for
PACE = Pace(seconds=25, least=20, most=150)
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
    share = options.pop("max_latency", None)
    limits = {"max_latency": share, "latency_runtime": "onnxruntime"} if share else {}
    splits = dataclasses.replace(
        case.splits,
        calibration=in_memory(case.splits.calibration),
        selection=in_memory(case.splits.selection, images),
        test=in_memory(case.splits.test),
    )
    words = f"{case.name}-{name.replace(',', '').replace(' ', '-')}-{images or 'all'}"
    return prune(
        case.model,
        data=splits,
        constraints=Constraints(max_accuracy_drop=POINTS, min_memory_saving=SAVING, **limits),
        batch_size=case.batch_size,
        out=ROOT / "runs" / "latency" / words,
        **options,
    )


def timed(networks: dict[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """Milliseconds and speed-ups of all networks at every batch size, by both clocks."""
    found: dict[str, dict[str, Any]] = {name: {} for name in networks}
    files = {name: exported(model, inputs) for name, model in networks.items()}
    for batch in BATCHES:
        sized = batched(inputs, batch)
        for clock, seconds in CLOCKS.items():
            pace = dataclasses.replace(PACE, clock=seconds)
            parts = {name: (model, sized) for name, model in networks.items()}
            runs = {name: partial(file, *sized) for name, file in files.items()}
            times = {
                "PyTorch": race_networks(parts, pace),
                "file": race(runs, pace, torch.device("cpu")),
            }
            for where, own in times.items():
                for name, told in speedups(own).items():
                    found[name][f"{where}, batch {batch}, {clock}"] = told
    return found


def speedups(times: dict[str, Seconds]) -> dict[str, dict[str, Any]]:
    """Quartiles of the milliseconds, and of the ratio to the unpruned network's in each round."""
    return {
        name: {
            "runs": len(own),
            "milliseconds": (1e3 * np.quantile(own, (0.25, 0.5, 0.75))).tolist(),
            "speedup": np.quantile(times["unpruned"] / own, (0.25, 0.5, 0.75)).tolist(),
        }
        for name, own in times.items()
    }


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    """The network as an ONNX file in onnxruntime."""
    (images,) = batched(inputs, 8)
    with tempfile.TemporaryDirectory() as folder:
        made = export(model, Path(folder) / "network.onnx", example_input=images, agreement=0.0)
        return onnx_runner(made.path.read_bytes())


def rows(case: Case, names: Sequence[str], images: int | None) -> list[dict[str, Any]]:
    results: dict[str, PruneResult] = {}
    refused = []
    for name in names:
        try:
            results[name] = run(case, name, images)
        except ValueError as error:  # a limit that no width can hold
            if "cannot hold" not in str(error):
                raise
            refused.append({"network": case.name, "row": name, "refused": str(error)})
        print(name, results[name].verdict if name in results else refused[-1], flush=True)
    load = os.getloadavg()
    networks = {"unpruned": case.model} | {name: r.model for name, r in results.items()}
    inputs = (in_memory(case.splits.calibration, 64).tensors[0],)
    times = timed(networks, inputs)
    macs = {name: count_operations(model, [inputs]).macs for name, model in networks.items()}
    before = next(iter(results.values())).metrics.before
    found = []
    for name in networks:
        result = results.get(name)
        costs = result.metrics.after if result else before
        row = {
            "network": case.name,
            "row": name,
            "images": len(case.splits.selection) if images is None else images,
            "options": ROWS.get(name, {}),
            "met": result.metrics.met if result else None,
            "saving": result.metrics.saving if result else 0.0,
            "test": dataclasses.asdict(costs.test) if costs.test else None,
            "macs": macs[name],
            "mac_ratio": macs["unpruned"] / macs[name],
            "membrane_bytes": costs.membrane_bytes_per_sample,
            "times": times[name],
            "load": [load[0], os.getloadavg()[0]],
            "widths": {s.group: list(s.after) for s in result.plan.steps} if result else {},
        }
        found.append(row)
    return [*found, *refused]


def page(found: list[dict[str, Any]]) -> str:
    """Tables: what was saved, what it cost, how much faster, and how much could be had."""
    lines = [
        "# Plans that count memory, and plans that count time too\n",
        f"Made by `python benchmarks/latency.py DATA`: at least {SAVING:.0%} of the memory saved,"
        f" within {POINTS:g} points; where time is limited, to {SHARE:g} of the unpruned network's"
        f" at a batch of {BATCHES[-1]}, both as ONNX files in onnxruntime.\n",
        short(found),
    ]
    for name in dict.fromkeys(row["network"] for row in found):
        lines += ["", f"## {name}", "", *_table([row for row in found if row["network"] == name])]
    return "\n".join([*lines, "", f"Seed 0 of every draw. {described()}.", ""])


def short(found: list[dict[str, Any]]) -> str:
    """What docs/costs.md shows."""
    where = {"PyTorch": "PyTorch", "file": "onnxruntime"}
    heads = " | ".join(f"{name}, batch {BATCHES[-1]} | share" for name in where.values())
    lines = [
        f"| network | plan | memory saved | test drop, points | MAC ratio | {heads} |",
        f"|{'---|' * (5 + 2 * len(where))}",
    ]
    before = {row["network"]: row["test"]["accuracy"] for row in found if row["row"] == "unpruned"}
    for row in found:
        first = f"| {row['network']} | {row['row']}"
        if "refused" in row:
            lines.append(f"{first} | cannot hold |{' |' * (2 + 2 * len(where))}")
        elif row["row"] != "unpruned":
            cells = " | ".join(_speed(row, f"{each}, batch {BATCHES[-1]}") for each in where)
            lines.append(
                f"{first} | {row['saving']:.1%}{'' if row['met'] else ', limits not met'}"
                f" | {_dropped(row, before[row['network']])} | {row['mac_ratio']:.2f} | {cells} |"
            )
    told = (
        "Speed-ups are medians of the ratios of neighbouring runs, all networks in turn, by the"
        " processor time of one thread; *share*: of the ratio of multiply-accumulates."
    )
    return "\n".join([*lines, "", told])


def _dropped(row: dict[str, Any], before: float) -> str:
    return f"{100 * (before - row['test']['accuracy']):.2f}"


def _speed(row: dict[str, Any], column: str) -> str:
    """A speed-up, and its share of what multiply-accumulates allow."""
    middle = row["times"][f"{column}, processor"]["speedup"][1]
    return f"{middle:.2f} | {middle / row['mac_ratio']:.0%}"


def _table(found: list[dict[str, Any]]) -> list[str]:
    """One network: every speed-up with its quartiles."""
    columns = list(found[0]["times"])
    lines = [f"| plan | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    notes = []
    for row in found[1:]:
        if "refused" in row:
            notes.append(f"{row['row']}: {row['refused']}.")
            continue
        cells = " | ".join(_spread(row["times"][column]) for column in columns)
        lines.append(f"| {row['row']} | {cells} |")
    told = "; ".join(
        f"{size}: {each['milliseconds'][1]:.1f} ms, {each['runs']} runs of each"
        for size, each in found[0]["times"].items()
    )
    first, last = found[0]["load"]
    images = f"{found[0]['images']:,} selection images"
    load = f"Load while they were timed: {first:.1f} to {last:.1f}"
    return [*lines, "", f"{images}. Unpruned, {told}. {load}.", *notes]


def _spread(times: dict[str, Any]) -> str:
    low, middle, high = times["speedup"]
    return f"{middle:.2f} ({low:.2f} .. {high:.2f})"


def _others(network: str) -> list[dict[str, Any]]:
    """What is known of the other networks."""
    path = RESULTS / "latency.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["network"] != network]


def main() -> None:
    torch.set_num_threads(1)
    data = sys.argv[1] if len(sys.argv) > 1 else ""
    if data != "digits" and not Path(data).is_dir():
        raise SystemExit(__doc__)
    images = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    names = sys.argv[3:] or list(ROWS)
    digits = Case(source=DIGITS[0], data=data, batch_size=450)
    case = digits if data == "digits" else Case(source=CIFAR, data=data)
    found = [*_others(case.name), *rows(case, names, images or None)]
    found.sort(key=lambda row: row["network"] != DIGITS[0])
    save("latency", found)
    (RESULTS / "latency.md").write_text(page(found))
    quote("docs/costs.md", "latency.md", short(found))
    print(page(found))


if __name__ == "__main__":
    main()

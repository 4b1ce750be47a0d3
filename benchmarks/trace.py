"""Seconds and peak memory of tracing every SDT-V2 at 224x224, and whether the groups agree.

    python benchmarks/trace.py            # writes benchmarks/results/trace.json

Each row is measured in a process of its own (peak memory is a process's), median of five traces.
The groups of the largest model are compared over time steps, batch sizes and image sizes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from machine import peak_bytes, save

from primesvt.channels import ChannelGraph, trace
from primesvt.models import create_model

MODELS = ("sdt_v2_15m", "sdt_v2_31m", "sdt_v2_55m", "sdt_v2_124m")
SHAPES = ((1, 1, 224, 224), (4, 1, 224, 224), (2, 2, 64, 96), (1, 3, 32, 32))


def measure(name: str) -> dict[str, Any]:
    """Trace one model in this process."""
    model = create_model(name)
    image = torch.rand(1, 3, 224, 224)
    before = peak_bytes()
    seconds, work = [], []
    for _ in range(5):
        start, start_work = time.perf_counter(), time.process_time()
        graph = trace(model, image)
        seconds.append(time.perf_counter() - start)
        work.append(time.process_time() - start_work)
    total = sum(p.numel() for p in model.parameters())
    return {
        "model": name,
        "parameters": total,
        "groups": len(graph),
        "prunable_groups": len(graph.prunable()),
        "prunable_share": round(graph.touched() / total, 4),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_range": [round(min(seconds), 2), round(max(seconds), 2)],
        "processor_seconds_median": round(statistics.median(work), 2),
        "load_average": round(os.getloadavg()[0], 2),
        "peak_megabytes": round(peak_bytes() / 1e6),
        "peak_megabytes_before_tracing": round(before / 1e6),
    }


def describe(graph: ChannelGraph) -> list[str]:
    return [str(group) for group in graph]


def same_groups(name: str) -> dict[str, Any]:
    """Trace one model at several (time steps, batch, height, width)."""
    model = create_model(name)
    found = []
    for time_steps, batch, height, width in SHAPES:
        model.time_steps = time_steps
        found.append(describe(trace(model, torch.rand(batch, 3, height, width))))
    equal = all(groups == found[0] for groups in found)
    return {"model": name, "shapes_TBHW": [list(s) for s in SHAPES], "groups_equal": equal}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    rows = []
    for name in MODELS:
        run = subprocess.run([sys.executable, __file__, name], capture_output=True, check=True)
        rows.append(json.loads(run.stdout))
        print(rows[-1])
    rows.append(same_groups(MODELS[-1]))
    print(rows[-1])
    print("written to", save("trace", rows).name)


if __name__ == "__main__":
    main()

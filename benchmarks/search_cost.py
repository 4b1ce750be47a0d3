"""What a search costs, beside the naive one: every rate of every layer on every image.

    python benchmarks/search_cost.py [CIFAR-FOLDER]     # results/search_cost.json and .md

The paper's policy (reading A) twice, side by side, on the same images and under the same limit.
Naive: every layer at every rate, then the walk rate by rate, each network run in full, with
SpikingJelly's own neurons. Here: the same by halving, with early rejection, shared blocks and
neurons in place. Digits are measured on all 450 selection images, CIFAR-10 on 300, where the naive
search is affordable, and the search of this package alone on all 5,000; the naive cost of those is
a formula and marked so. Multiply-accumulates are PyTorch's count of operations halved, in a run of
their own, as counting is slow; seconds are of one run each, one thread.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from checkpoints import CIFAR, Case
from machine import RESULTS, described, save
from presets import in_memory
from throughput import every_step, plain
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from primesvt.bench import Bench
from primesvt.evaluation import DataEvaluator
from primesvt.importance import Evidence, find_importance
from primesvt.memory import parameter_bytes
from primesvt.policies import Gate, Prime, Walk
from primesvt.probes import Cuts, Probe, ProbeTable, Reference
from primesvt.racing import Race
from primesvt.recovery import Recovery
from primesvt.scoring import Measurement
from primesvt.sensitivity import Layer, find_edges, probe_layers

METHODS = {"paper": ("l2", "none"), "recovered": ("obs", "refit")}
LIMITS = {"digits": 0.02, "cifar": 0.03}
Search = Callable[[Case, str], dict[str, Any]]


class OneByOne(Bench):
    """Every network in full, nothing shared."""

    def probes(self, wanted: Sequence[Cuts], **_: Any) -> list[Probe]:
        return [super(OneByOne, self).probes([cuts])[0] for cuts in wanted]


def bench_of(case: Case, method: str, *, naive: bool) -> tuple[Bench, Gate]:
    """A bench on the selection images of a case, and its gate."""
    evaluate = DataEvaluator(splits=case.splits, batch_size=64, device=torch.device("cpu"))

    def in_full(network: nn.Module) -> Measurement:
        return evaluate(every_step(plain(network)))

    table = ProbeTable()
    measured = in_full(case.model) if naive else evaluate(case.model)
    size = parameter_bytes(case.model)
    reference = Reference(context={}, measurement=measured, parameter_bytes=size)
    table.start(reference)
    limit = LIMITS["digits" if case.data == "digits" else "cifar"]
    gate = Gate(kind="point", allowed=limit, reference=reference)
    assert measured.outcomes is not None
    race = Race(limit=limit, total=len(measured.outcomes), gate="point")
    importance, recovery = METHODS[method]
    return (OneByOne if naive else Bench)(
        model=case.model,
        graph=case.graph,
        evaluate=in_full if naive else evaluate,
        table=table,
        importance=find_importance(importance),
        evidence=Evidence(model=case.model, graph=case.graph, activity=case.activity),
        recovery=Recovery(kind=recovery, activity=case.activity),
        race=None if naive else race,
    ), gate


def naive(case: Case, method: str) -> dict[str, Any]:
    """All rates, then the walk from the highest tolerated one downwards."""
    bench, gate = bench_of(case, method, naive=True)
    layers = probe_layers(bench, case.groups)
    swept = len(bench.table)
    walk = Prime(gate=gate).walk(layers, bench.probe)
    return {**told(bench, gate, layers, walk), "swept": swept}


def here(case: Case, method: str) -> dict[str, Any]:
    """The same question by halving, racing and sharing."""
    bench, gate = bench_of(case, method, naive=False)
    layers = find_edges(bench, case.groups, passes=lambda probe: gate.judge(probe).passed)
    swept = len(bench.table)
    walk = Prime(gate=gate, halving=True).walk(layers, bench.probe)
    return {**told(bench, gate, layers, walk), "swept": swept}


def told(bench: Bench, gate: Gate, layers: Sequence[Layer], walk: Walk) -> dict[str, Any]:
    """What a search found, and on how many images."""
    probes = list(bench.table)
    passes = {
        f"{layer.group} {point.rate}": point.probe is None or gate.judge(point.probe).passed
        for layer in layers
        for point in layer.points
    }
    images = sum(probe.samples or 0 for probe in probes)
    return {
        "probes": len(probes),
        "rejected_early": sum(probe.rejected is not None for probe in probes),
        "images": images,
        "saving": walk.probe.saving if walk.probe else 0.0,
        "accuracy": walk.probe.accuracy if walk.probe else bench.reference.accuracy,
        "passes": passes,
    }


def measured(case: Case, method: str, search: Search) -> dict[str, Any]:
    """One search for its seconds, and one for its multiply-accumulates."""
    _ = case.activity.norms, case.activity.readers  # gathered once, for both searches
    begin = time.perf_counter()
    found = search(case, method)
    found["seconds"] = round(time.perf_counter() - begin, 1)
    with FlopCounterMode(display=False) as counter:
        search(case, method)
    return {**found, "macs": counter.get_total_flops() // 2}


def compared(case: Case, images: int) -> Iterator[dict[str, Any]]:
    for method in METHODS:
        before, after = (measured(case, method, search) for search in (naive, here))
        asked = before.pop("passes")
        answers = after.pop("passes")
        equal = sum(answers.get(rate, False) == passed for rate, passed in asked.items())
        yield {
            "model": case.name,
            "images": images,
            "method": method,
            "naive": before,
            "here": after,
            "decisions": len(asked),
            "equal": equal,
        }


def large(case: Case, small: list[dict[str, Any]], images: int) -> Iterator[dict[str, Any]]:
    """This package's search on many images; the naive cost from its images and those of a few."""
    for method, known in zip(METHODS, small, strict=True):
        found = measured(case, method, here)
        found.pop("passes")
        share = images / known["images"]
        formula = {"macs": int(known["naive"]["macs"] * share), "probes": known["naive"]["probes"]}
        yield {
            "model": case.name,
            "images": images,
            "method": method,
            "naive": formula,
            "here": found,
            "formula": True,
        }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# The cost of a search\n",
        "Made by `python benchmarks/search_cost.py`, which says what is measured. Naive, then here;"
        " probes of layers and of the walk. f: by formula, the naive count on fewer images times"
        " the ratio of images (recovery included, which does not grow: an upper bound for"
        " `recovered`).\n",
        "| model | images | method | probes | rejected early | GMACs | fewer | seconds | quicker"
        " | equal decisions | saved | accuracy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a, b = row["naive"], row["here"]
        formula = row.get("formula", False)
        mark = "f " if formula else ""
        seconds = f"{b['seconds']:g}" if formula else f"{a['seconds']:g}, {b['seconds']:g}"
        quicker = "" if formula else f"{a['seconds'] / b['seconds']:.1f}x"
        equal = "" if formula else f"{row['equal']} of {row['decisions']}"
        saved = "" if formula else f"{a['saving']:.2%}, "
        right = "" if formula else f"{a['accuracy']:.2%}, "
        lines.append(
            f"| {row['model']} | {row['images']:,} | {row['method']} | {a['probes']}, {b['probes']}"
            f" | {b['rejected_early']} | {mark}{a['macs'] / 1e9:,.0f}, {b['macs'] / 1e9:,.0f}"
            f" | {mark}{a['macs'] / b['macs']:.1f}x | {seconds} | {quicker} | {equal}"
            f" | {saved}{b['saving']:.2%} | {right}{b['accuracy']:.2%} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def with_selection(case: Case, most: int | None) -> Case:
    """A case whose sets are in memory, the selection images in one seeded order."""
    selection = in_memory(case.splits.selection)
    order = torch.randperm(len(selection), generator=torch.Generator().manual_seed(0))[:most]
    kept = torch.utils.data.TensorDataset(*(tensor[order] for tensor in selection.tensors))
    calibration = in_memory(case.splits.calibration)
    splits = dataclasses.replace(case.splits, selection=kept, calibration=calibration)
    fresh = dataclasses.replace(case)
    fresh.__dict__["splits"] = splits
    return fresh


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []

    def keep(found: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        first = len(rows)
        for row in found:
            rows.append(row)
            save("search_cost", rows)
            (RESULTS / "search_cost.md").write_text(markdown(rows))
            print(row, flush=True)
        return rows[first:]

    digits = Case(source="sdt_v2_digits", data="digits", batch_size=64)
    keep(compared(with_selection(digits, None), 450))
    if len(sys.argv) > 1:
        cifar = Case(source=CIFAR, data=sys.argv[1], batch_size=64)
        small = keep(compared(with_selection(cifar, 300), 300))
        keep(large(with_selection(cifar, None), small, 5000))


if __name__ == "__main__":
    main()

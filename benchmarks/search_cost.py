"""What a search costs, beside the naive one: every rate of every layer on every image.

    python benchmarks/search_cost.py [CIFAR-FOLDER]     # results/search_cost.json and .md

The paper's policy (reading A) side by side, on the same images and under the same limit.
Naive: every layer at every rate, then the walk rate by rate, each network run in full, with
SpikingJelly's own neurons. Sharing: the same networks on the same images, shared blocks run once.
Here: what the policy does outside the `paper` preset: the walk alone, with early rejection, shared
blocks and neurons in place. Digits are measured on all 450 selection images, CIFAR-10 on 300, where
the naive search is affordable, and the search of this package alone on all 5,000; the naive cost of
those is a formula and marked so. Multiply-accumulates are PyTorch's count of operations halved: of
whole networks that of one batch, times the batches; of the others in a run of their own, as
counting is slow. Seconds are processor seconds of one run each, one thread.

Decisions: `judged` are the networks that the search judged, each judged once more on all images;
`rates` are the pairs of a layer and a rate of which the plan has to say whether the layer gets it.
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

from primesvt.channels.widths import RATES, Widths
from primesvt.evaluation.evaluator import DataEvaluator, Measurement
from primesvt.evaluation.sequential_test import SequentialTest
from primesvt.importance import CriterionContext, find_importance
from primesvt.profiling.memory import parameter_bytes
from primesvt.pruning.policies import AccuracyGate, PolicyResult
from primesvt.pruning.policies.prime import Prime
from primesvt.pruning.probe_table import Probe, ProbeTable, Reference
from primesvt.pruning.prober import Prober
from primesvt.pruning.sensitivity import probe_layers, unprobed, width_grids
from primesvt.recovery import find_recovery

METHODS = {"paper": ("l2", "none"), "recovered": ("obs", "refit")}
LIMITS = {"digits": 0.02, "cifar": 0.03}
Search = Callable[[Case, str], dict[str, Any]]


class OneByOne(Prober):
    """Every network in full, nothing shared."""

    def probes(self, wanted: Sequence[Widths], **_: Any) -> list[Probe]:
        return [super(OneByOne, self).probes([cuts])[0] for cuts in wanted]

    def macs(self, inputs: torch.Tensor, images: int, calibration: int) -> int:
        """What all of its networks took: those of a few inputs, times the images.

        A recovered network runs the calibration images as well.
        """
        seen = images + (calibration if self.recovery.needs_inputs else 0)
        total = 0
        for probe in self.table:
            network = every_step(plain(self.builder._pruned(probe.cuts)))
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(inputs)
            total += counter.get_total_flops() // 2 * seen // len(inputs)
        return total


def prober_of(case: Case, method: str, *, naive: bool) -> tuple[Prober, AccuracyGate]:
    """A bench on the selection images of a case, and its gate."""
    evaluate = DataEvaluator(splits=case.splits, batch_size=64, device=torch.device("cpu"))

    def in_full(network: nn.Module) -> Measurement:
        return evaluate(every_step(plain(network)))

    measured = in_full(case.model) if naive else evaluate(case.model)
    size = parameter_bytes(case.model)
    reference = Reference(context={}, measurement=measured, parameter_bytes=size)
    table = ProbeTable(reference)
    limit = LIMITS["digits" if case.data == "digits" else "cifar"]
    gate = AccuracyGate(kind="point", allowed=limit, reference=reference)
    assert measured.outcomes is not None
    race = SequentialTest(limit=limit, total=len(measured.outcomes), gate="point")
    importance, recovery = METHODS[method]
    return (OneByOne if naive else Prober)(
        model=case.model,
        graph=case.graph,
        evaluate=in_full if naive else evaluate,
        table=table,
        importance=find_importance(importance),
        evidence=CriterionContext(model=case.model, graph=case.graph, activity=case.activity),
        recovery=find_recovery(recovery)(activity=case.activity),
        race=None if naive else race,
    ), gate


def naive(case: Case, method: str) -> dict[str, Any]:
    """All rates, then the walk from the highest tolerated one downwards."""
    prober, gate = prober_of(case, method, naive=True)
    layers = probe_layers(prober, width_grids(prober.model, prober.graph, case.groups, rates=RATES))
    swept = len(prober.table)
    walk = Prime(gate=gate).prune_layers(layers, lambda cuts, _: prober.probe(cuts))
    return {**told(prober, walk, case), "swept": swept, "bench": prober}


def sweep_alone(case: Case, method: str) -> dict[str, Any]:
    """Only the sweep, one by one and in full."""
    prober, _ = prober_of(case, method, naive=True)
    probe_layers(prober, width_grids(prober.model, prober.graph, case.groups, rates=RATES))
    return {"probes": answers(prober), "bench": prober}


def sharing(case: Case, method: str) -> dict[str, Any]:
    """The same sweep, shared blocks run once; nothing else is saved."""
    prober, _ = prober_of(case, method, naive=False)
    prober._test = None
    probe_layers(prober, width_grids(prober.model, prober.graph, case.groups, rates=RATES))
    return {"probes": answers(prober)}


def here(case: Case, method: str) -> dict[str, Any]:
    """The same plan by the walk alone, racing and sharing."""
    prober, gate = prober_of(case, method, naive=False)
    layers = unprobed(width_grids(prober.model, prober.graph, case.groups, rates=RATES))
    walk = Prime(gate=gate).prune_layers(layers, lambda c, around: prober.probe(c, around=around))
    return told(prober, walk, case)


def judged_again(case: Case, method: str) -> tuple[int, int]:
    """Networks that the search judged, and those of them that all images judge alike."""
    prober, gate = prober_of(case, method, naive=False)
    layers = unprobed(width_grids(prober.model, prober.graph, case.groups, rates=RATES))
    Prime(gate=gate).prune_layers(layers, lambda c, around: prober.probe(c, around=around))
    early = [probe for probe in prober.table if probe.rejected is not None]
    wrong = sum(gate.judge(prober.probe(probe.cuts, full=True)).passed for probe in early)
    return len(prober.table), len(prober.table) - wrong


def answers(prober: Prober) -> list[tuple[Any, ...]]:
    return [(sorted(p.cuts.items()), p.accuracy, p.lost, p.gained) for p in prober.table]


def told(prober: Prober, walk: PolicyResult, case: Case) -> dict[str, Any]:
    """What a search found, and on how many images."""
    probes = list(prober.table)
    return {
        "probes": len(probes),
        "rejected_early": sum(probe.rejected is not None for probe in probes),
        "images": sum(probe.samples or 0 for probe in probes),
        "saving": walk.probe.saving if walk.probe else 0.0,
        "accuracy": walk.probe.accuracy if walk.probe else prober.reference.accuracy,
        "taken": {
            f"{grid.group} {rate}": kept >= walk.cuts.get(grid.group, grid.size)
            for grid in width_grids(prober.model, prober.graph, case.groups, rates=RATES)
            for kept, rate in grid.widths.items()
        },
    }


def measured(case: Case, method: str, search: Search) -> dict[str, Any]:
    """One search for its seconds, and one for its multiply-accumulates."""
    _ = case.activity.norms, case.activity.readers  # gathered once, for both searches
    begin, begin_wall = time.process_time(), time.perf_counter()
    found = search(case, method)
    found["seconds"] = round(time.process_time() - begin, 1)
    found["wall_seconds"] = round(time.perf_counter() - begin_wall, 1)
    if "bench" in found:
        selection = case.splits.selection
        inputs = torch.stack([selection[n][0] for n in range(4)])
        sets = len(selection), len(case.splits.calibration)
        macs = found.pop("bench").macs(inputs, *sets)
        return {**found, "macs": macs}
    with FlopCounterMode(display=False) as counter:
        search(case, method)
    return {**found, "macs": counter.get_total_flops() // 2}


def compared(case: Case, images: int) -> Iterator[dict[str, Any]]:
    for method in METHODS:
        row = {"model": case.name, "images": images, "method": method}
        if method == "paper":
            before, after = (measured(case, method, search) for search in (sweep_alone, sharing))
            same = before.pop("probes") == after.pop("probes")
            yield {**row, "part": "sharing", "naive": before, "here": after, "bit_exact": same}
        before, after = (measured(case, method, search) for search in (naive, here))
        wanted, given = before.pop("taken"), after.pop("taken")
        judged, alike = judged_again(case, method)
        yield {
            **row,
            "part": "all",
            "naive": before,
            "here": after,
            "judged": judged,
            "alike": alike,
            "rates": len(wanted),
            "equal": sum(given[rate] == taken for rate, taken in wanted.items()),
        }


def large(case: Case, small: list[dict[str, Any]], images: int) -> Iterator[dict[str, Any]]:
    """This package's search on many images; the naive cost from its images and those of a few."""
    for known in small:
        if known["part"] != "all" or known["method"] != "paper":
            continue
        found = measured(case, known["method"], here)
        found.pop("taken")
        share = images / known["images"]
        before = known["naive"]
        yield {
            "model": case.name,
            "images": images,
            "method": known["method"],
            "part": "all",
            "naive": {
                "macs": int(before["macs"] * share),
                "seconds": round(before["seconds"] * share, 1),
                "probes": before["probes"],
            },
            "here": found,
            "formula": True,
        }


def markdown(rows: list[dict[str, Any]]) -> str:
    sharing = [row for row in rows if row["part"] == "sharing"]
    lines = [
        "# The cost of a search\n",
        "Made by `python benchmarks/search_cost.py`, which says what is measured.\n",
        "## The whole search\n",
        "Naive, then here. *f*: by formula, the naive cost on fewer images times the ratio of"
        " images.\n",
        "| model | images | method | networks | rejected early | GMACs | fewer | seconds | quicker"
        " | judged alike | rates alike | saved | accuracy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *[_line(row) for row in rows if row["part"] == "all"],
        "\n## Sharing blocks in the sweep alone\n",
        "Every layer at every rate on all images: one by one, then with shared blocks.\n",
        "| model | images | method | GMACs | fewer | seconds | quicker | answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sharing:
        a, b = row["naive"], row["here"]
        lines.append(
            f"| {row['model']} | {row['images']:,} | {row['method']} | {a['macs'] / 1e9:,.0f},"
            f" {b['macs'] / 1e9:,.0f} | {a['macs'] / b['macs']:.1f}x | {a['seconds']:g},"
            f" {b['seconds']:g} | {a['seconds'] / b['seconds']:.1f}x"
            f" | {'equal, bit for bit' if row['bit_exact'] else 'DIFFERENT'} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def _line(row: dict[str, Any]) -> str:
    a, b = row["naive"], row["here"]
    formula = row.get("formula", False)
    mark = "f " if formula else ""
    alike = "" if formula else f"{row['alike']} of {row['judged']}"
    equal = "" if formula else f"{row['equal']} of {row['rates']}"
    saved = "" if formula else f"{a['saving']:.2%}, "
    right = "" if formula else f"{a['accuracy']:.2%}, "
    return (
        f"| {row['model']} | {row['images']:,} | {row['method']} | {a['probes']}, {b['probes']}"
        f" | {b['rejected_early']} | {mark}{a['macs'] / 1e9:,.0f}, {b['macs'] / 1e9:,.0f}"
        f" | {mark}{a['macs'] / b['macs']:.1f}x | {mark}{a['seconds']:g}, {b['seconds']:g}"
        f" | {mark}{a['seconds'] / b['seconds']:.1f}x | {alike} | {equal}"
        f" | {saved}{b['saving']:.2%} | {right}{b['accuracy']:.2%} |"
    )


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

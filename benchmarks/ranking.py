"""How costs of different groups are made comparable for one ranking of all channels.

    python benchmarks/ranking.py [CIFAR-FOLDER]      # results/ranking.json and .md

Distance (nats per image, up to 450 selection images) of networks that save 20, 40 and 60 % of the
memory by the ranking of policy ``global`` under several normalisations of its costs, and by one
rate for all groups. Nothing is chosen by accuracy, and the test set is not looked at. Rows that are
in ranking.json are not made again.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from checkpoints import Case, cases, uniform
from machine import RESULTS, described, save
from presets import in_memory

from primesvt.calibration import calibration_of
from primesvt.channels.widths import Widths, kept_count
from primesvt.evaluation.divergence import OutputDivergence
from primesvt.importance import CriterionContext, find_importance, removal_costs
from primesvt.models.shared_prefix import VariantBatch
from primesvt.pruning.policies.global_ranking import shares_left
from primesvt.pruning.prober import Prober

Costs = npt.NDArray[np.float64]
SAVINGS = (0.2, 0.4, 0.6)
METHODS = (
    ("l2", "none"),
    ("l2", "refit"),
    ("activity", "refit"),
    ("taylor", "bn"),
    ("obs", "refit"),
)
LEAST = 1e-4  # nats; smaller distances count as this in a geometric mean


def _over(norm: Callable[[Costs], float]) -> Callable[[Costs], Costs]:
    return lambda costs: costs / max(norm(costs), 1e-300)


NORMALISATIONS: dict[str, Callable[[Costs], Costs]] = {
    "none": lambda costs: costs,
    "mean": _over(lambda costs: float(costs.mean())),
    "largest": _over(lambda costs: float(costs.max())),
    "norm": _over(lambda costs: float(np.sqrt(np.square(costs).sum()))),
    "sum": _over(lambda costs: float(costs.sum())),
    "shares left (built in)": shares_left,
}
UNIFORM = "one rate"


def ranked(
    case: Case, prober: Prober, costs: dict[str, Costs], normalise: Callable[[Costs], Costs]
) -> list[Widths]:
    """The cuts of one ranking at every saving."""
    groups, steps = case.groups, []
    for place, group in enumerate(groups):
        most = group.size - kept_count(group.size, 0.98)
        worth = normalise(costs[group.name]).mean(0)[:most]
        steps += [(value, place) for value in worth.tolist()]
    order = [place for _, place in sorted(steps, key=lambda step: step[0])]

    def remove(kept: tuple[int, ...], place: int) -> tuple[int, ...]:
        return (*kept[:place], kept[place] - 1, *kept[place + 1 :])

    plans = list(accumulate(order, remove, initial=tuple(group.size for group in groups)))

    def cuts(plan: tuple[int, ...]) -> Widths:
        pairs = zip(groups, plan, strict=True)
        return {group.name: kept for group, kept in pairs if kept < group.size}

    total = prober.reference.parameter_bytes
    places = [
        bisect_left(plans, saving * total, key=lambda plan: prober.bytes_saved(cuts(plan)))
        for saving in SAVINGS
    ]
    return [cuts(plans[min(place, len(plans) - 1)]) for place in places]


def rows_of(case: Case, known: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """One row per importance, recovery and normalisation."""
    evidence = CriterionContext(model=case.model, graph=case.graph, activity=case.activity)
    images = in_memory(case.splits.selection, 450)
    distance = OutputDivergence(case.model, calibration_of(images, batch_size=150))
    for importance, recovery in METHODS:
        prober = case.prober(importance, recovery)
        rank = find_importance(importance)
        costs = {group.name: removal_costs(rank, evidence, group) for group in case.groups}
        for name in (*NORMALISATIONS, UNIFORM):
            if (case.name, importance, recovery, name) in known:
                continue
            if name == UNIFORM:
                plans = [uniform(prober, case.groups, saving) for saving in SAVINGS]
            else:
                plans = ranked(case, prober, costs, NORMALISATIONS[name])
            found = [distance(VariantBatch(networks=[prober.cut(cuts)]))[0] for cuts in plans]
            yield {
                "model": case.name,
                "data": "digits" if case.data == "digits" else "cifar10",
                "importance": importance,
                "recovery": recovery,
                "normalisation": name,
                "distances": found,
            }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Geometric means over networks and savings: a line per method, a column per normalisation."""
    names = [*NORMALISATIONS, UNIFORM]
    lines = [
        "# One ranking for all groups: how costs are made comparable\n",
        "Made by `python benchmarks/ranking.py`, which says what is measured: distance from the"
        f" unpruned network in nats per image (geometric mean over savings of"
        f" {', '.join(f'{saving:.0%}' for saving in SAVINGS)}, and over three training seeds of"
        " digits).\n",
        f"| data | importance, recovery | {' | '.join(names)} |",
        "|---|---" + "|---" * len(names) + "|",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        for method in METHODS:
            own = [r for r in rows if (r["importance"], r["recovery"]) == method]
            own = [r for r in own if r["data"] == data]
            means = [_mean([r for r in own if r["normalisation"] == name]) for name in names]
            if all(mean is not None for mean in means):
                told = " | ".join(f"{mean:.4f}" for mean in means)
                lines.append(f"| {data} | {', '.join(method)} | {told} |")
    return "\n".join([*lines, "", f"{described()}.", ""])


def _mean(rows: list[dict[str, Any]]) -> float | None:
    values = [max(LEAST, value) for row in rows for value in row["distances"]]
    return float(np.exp(np.mean(np.log(values)))) if values else None


def main() -> None:
    torch.set_num_threads(1)
    path = RESULTS / "ranking.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    keys = ("model", "importance", "recovery", "normalisation")
    for case in cases(sys.argv[1] if len(sys.argv) > 1 else None):
        for row in rows_of(case, {tuple(row[key] for key in keys) for row in rows}):
            rows.append(row)
            save("ranking", rows)
            print(*(row[key] for key in keys), [round(d, 4) for d in row["distances"]], flush=True)
    (RESULTS / "ranking.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

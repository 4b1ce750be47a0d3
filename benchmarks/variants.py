"""Each choice inside the recovery against the one it was preferred to.

    python benchmarks/variants.py [CIFAR-FOLDER]      # results/variants.json and .md

Uniform rates, obs and refit, as in recovery.py; one thing is changed in each row. Test accuracy,
digits of three training seeds pooled; every row looks at the test set once.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from checkpoints import Case, cases, uniform
from machine import RESULTS, described, save
from torch import nn

import primesvt.calibration.readers as patches
from primesvt.calibration import ActivationStatistics, evaluating
from primesvt.calibration.least_squares import damped
from primesvt.calibration.norm_inputs import norms_of
from primesvt.channels import remove_channels
from primesvt.channels.widths import Widths
from primesvt.evaluation.confidence import wilson_interval
from primesvt.importance import CriterionContext, find_importance, keep
from primesvt.models.shared_prefix import VariantBatch
from primesvt.recovery import Refit

SAVINGS = (0.25, 0.5)
Variant = Callable[[Case, Widths], nn.Module]


def usual(case: Case, cuts: Widths) -> nn.Module:
    """What the package does."""
    return case.prober("obs", "refit").cut(cuts)


def scores_once(case: Case, cuts: Widths) -> nn.Module:
    """One inverse, no updates: ``||w_c||^2 / [C^-1]_cc``, taps summed."""
    prober = case.prober("obs", "refit")
    for name in cuts:
        group = case.graph[name]
        readers = case.activity.readers[name]
        if not readers:
            continue  # q and k: their product decides, as always
        total = np.zeros((group.positions, group.size))
        for reader in readers:
            covariance = case.activity.inputs(reader).covariance
            inverse = torch.linalg.inv(damped(covariance, reader.groups)).diagonal()
            weights = reader.inputs(case.model)
            each = (weights.square().sum(1) / inverse).unflatten(0, (-1, reader.taps)).sum(1)
            scale = float((weights * (covariance @ weights)).sum()) or 1.0
            total += reader.per_channel(each / scale, group)
        prober.builder._scores[name] = total
    return prober.cut(cuts)


def channel_mixing(case: Case, cuts: Widths) -> nn.Module:
    """One mixing of channels for all places of a kernel."""
    largest, patches.LARGEST = patches.LARGEST, 0
    try:
        other = copy.copy(case)
        other.__dict__.pop("activity", None)
        return other.prober("obs", "refit").cut(cuts)
    finally:
        patches.LARGEST = largest


def refit_alone(case: Case, cuts: Widths) -> nn.Module:
    """Batch norms stay as they were."""
    smaller, kept = copy.deepcopy(case.model), kept_of(case, cuts)
    Refit(activity=case.activity).before(smaller, kept)
    remove_channels(smaller, case.graph, kept)
    return smaller


def replaced(case: Case, cuts: Widths) -> nn.Module:
    """Running statistics of all norms become those of the calibration images."""
    smaller = refit_alone(case, cuts)
    norms = norms_of(smaller).values()
    with evaluating(smaller):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # type: ignore[assignment]
            norm.train()
        for _ in case.activity.calibration.run(smaller):
            pass
    return smaller.eval()


def one_by_one(case: Case, cuts: Widths) -> nn.Module:
    """Groups in forward order, statistics anew on the network pruned so far."""
    model, graph = copy.deepcopy(case.model), case.graph
    for name in (group.name for group in case.groups if group.name in cuts):
        activity = ActivationStatistics(
            model=model,
            graph=graph,
            groups=(graph[name],),
            calibration=case.activity.calibration,
        )
        evidence = CriterionContext(model=model, graph=graph, activity=activity)
        kept = {name: keep(find_importance("obs")(evidence, graph[name]), cuts[name])}
        recovery = Refit(activity=activity)
        _ = activity.norms  # of the network before this cut
        smaller = copy.deepcopy(model)
        recovery.before(smaller, kept)
        after = remove_channels(smaller, graph, kept)
        recovery.after(VariantBatch(networks=[smaller]), [kept])
        model, graph = smaller, after
    return model


def kept_of(case: Case, cuts: Widths) -> dict[str, Any]:
    prober = case.prober("obs", "refit")
    return {name: prober.kept(name, count) for name, count in cuts.items()}


VARIANTS: dict[str, Variant] = {
    "as built": usual,
    "scores taken once, no updates": scores_once,
    "3x3 readers: one mixing of channels": channel_mixing,
    "refit, batch norms as they were": refit_alone,
    "batch norms: statistics replaced": replaced,
    "group by group, statistics anew": one_by_one,
}


def measure(case: Case) -> list[dict[str, Any]]:
    rows = []
    for saving in SAVINGS:
        prober = case.prober("obs", "refit")
        cuts = uniform(prober, case.groups, saving)
        for name, variant in VARIANTS.items():
            begin = time.perf_counter()
            smaller = variant(case, cuts)
            seconds = round(time.perf_counter() - begin, 1)
            right = case.test(smaller)
            rows.append(
                {
                    "model": case.name,
                    "data": "digits" if case.data == "digits" else "cifar10",
                    "asked": saving,
                    "variant": name,
                    "images": len(right),
                    "right": int(right.sum()),
                    "seconds": seconds,
                }
            )
            print(rows[-1], flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Choices inside the recovery\n",
        "Made by `python benchmarks/variants.py`, which says what is measured. Test accuracy in %,"
        " with its 95 % interval.\n",
        "| variant | "
        + " | ".join(f"{d}, {s:.0%} saved" for d in _data(rows) for s in SAVINGS)
        + " |",
        "|---|" + "---|" * (len(_data(rows)) * len(SAVINGS)),
    ]
    for variant in VARIANTS:
        cells = []
        for data in _data(rows):
            for saving in SAVINGS:
                found = [
                    r for r in rows
                    if (r["data"], r["asked"], r["variant"]) == (data, saving, variant)
                ]  # fmt: skip
                right, images = sum(r["right"] for r in found), sum(r["images"] for r in found)
                low, high = wilson_interval(right, images)
                cells.append(f"{100 * right / images:.1f} ({100 * low:.1f}..{100 * high:.1f})")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{described()}.", ""])


def _data(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["data"] for row in rows))


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for case in cases(sys.argv[1] if len(sys.argv) > 1 else None):
        rows += measure(case)
        save("variants", rows)
    (RESULTS / "variants.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

"""How often each gate breaks its promise: resampled splits of one pool of held-out images.

    python benchmarks/gate.py [CIFAR-FOLDER]     # results/gate.json and .md, gate_DATA.npz

A ladder of networks (uniform rates, obs, refit) is measured once on all images that training never
saw, selection and test pooled; right and wrong of every image are kept. Then, 1000 times, the pool
is split at random: search images choose the network of the largest saving that passes the gate,
other images confirm it, and the true drop of the choice is its drop on the whole pool. A violation
is a true drop above the limit. The splits take a few seconds: no network runs again.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from checkpoints import CIFAR, Case, uniform
from machine import RESULTS, described, save
from torch.utils.data import ConcatDataset

from primesvt.evaluation.confidence import paired_drop_bound, wilson_interval
from primesvt.evaluation.evaluator import outcomes
from primesvt.pruning.confirmation import confirm, sequence
from primesvt.pruning.inputs import SEARCHED

LADDER = tuple(np.arange(0.04, 0.80, 0.02).round(2).tolist())
SPLITS = 1000
LEVEL = 0.95
Right = npt.NDArray[np.bool_]


def pooled(case: Case) -> tuple[Right, npt.NDArray[np.float64]]:
    """Right or wrong ``[1 + networks, images]``, the unpruned network first, and the savings."""
    path = RESULTS / f"gate_{case.name}.npz"
    if path.exists():
        stored = np.load(path)
        count = int(stored["images"])
        return np.unpackbits(stored["right"], axis=1, count=count).astype(np.bool_), stored["saved"]
    assert case.splits.test is not None
    pool: Any = ConcatDataset([case.splits.selection, case.splits.test])
    prober = case.prober("obs", "refit")
    rows, saved = [outcomes(case.model, pool, batch_size=case.batch_size)], [0.0]
    for saving in LADDER:
        cuts = uniform(prober, case.groups, saving)
        rows.append(outcomes(prober.cut(cuts), pool, batch_size=case.batch_size))
        saved.append(prober.bytes_saved(cuts) / prober.reference.parameter_bytes)
        print(case.name, f"{saving:.0%}", f"{rows[-1].mean():.4f}", flush=True)
    right = np.stack(rows)
    np.savez_compressed(path, right=np.packbits(right, axis=1), saved=saved, images=right.shape[1])
    return right, np.array(saved)


def drops(right: Right, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Lost and gained of every network on some images: ``[2, networks]``."""
    before, after = right[0, images], right[1:, images]
    return np.stack([(before & ~after).sum(1), (~before & after).sum(1)])


def choose(right: Right, search: npt.NDArray[np.int64], limit: float, gate: str) -> list[int]:
    """Networks that pass on the search images, up to the one of the largest saving."""
    lost, gained = drops(right, search)
    n = len(search)
    return [
        i
        for i, (a, b) in enumerate(zip(lost.tolist(), gained.tolist(), strict=True))
        if (paired_drop_bound(a, b, n, level=LEVEL) if gate != "point" else (a - b) / n) <= limit
    ]


def once(
    right: Right,
    saved: npt.NDArray[np.float64],
    order: npt.NDArray[np.int64],
    limit: float,
    gate: str,
) -> int:
    """The network that one split ends with: its place in the ladder, -1 for the unpruned one."""
    searched = math.ceil(SEARCHED * len(order))
    confirming = gate == "bound, confirmed"
    search = order[:searched] if confirming else order
    passed = choose(right, search, limit, gate)
    if not passed or not confirming:
        return passed[-1] if passed else -1
    networks: list[Any] = [{"network": i} for i in passed]
    tested = sequence(networks, lambda cuts: int(1e6 * saved[cuts["network"] + 1]))
    aside = order[searched:]
    cuts, _ = confirm(
        tested,
        outcomes=lambda cuts: right[cuts["network"] + 1, aside],
        before=right[0, aside],
        limit=limit,
        level=LEVEL,
    )
    return int(cuts["network"]) if cuts else -1


def simulate(case: Case, limit: float, images: int) -> list[dict[str, Any]]:
    """Every gate on the same splits."""
    right, saved = pooled(case)
    lost, gained = drops(right, np.arange(right.shape[1]))
    true = np.append((lost - gained) / right.shape[1], 0.0)
    savings = np.append(saved[1:], 0.0)
    generator = np.random.default_rng(0)
    orders = [generator.permutation(right.shape[1])[:images] for _ in range(SPLITS)]
    rows = []
    for gate in ("point", "bound", "bound, confirmed"):
        ends = np.array([once(right, saved, order, limit, gate) for order in orders])
        broken = int((true[ends] > limit).sum())
        low, high = wilson_interval(broken, SPLITS)
        rows.append(
            {
                "model": case.name,
                "limit": limit,
                "gate": gate,
                "images": images,
                "pool": right.shape[1],
                "splits": SPLITS,
                "violations": broken,
                "share": broken / SPLITS,
                "low": low,
                "high": high,
                "saving_mean": float(savings[ends].mean()),
                "saving_deviation": float(savings[ends].std()),
                "largest_allowed": float(savings[true <= limit].max()),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Gates on resampled splits\n",
        "Made by `python benchmarks/gate.py`, which says what is measured. A violation is a true"
        " drop above the limit; 5 % are allowed to the bound gates.\n",
        "| model | limit | gate | images used, of pool | violations (95 %) | mean saving"
        " | largest saving within the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {100 * r['limit']:g} points | {r['gate']}"
            f" | {r['images']:,} of {r['pool']:,}"
            f" | {r['share']:.1%} ({r['low']:.1%} .. {r['high']:.1%})"
            f" | {r['saving_mean']:.1%} +- {r['saving_deviation']:.1%}"
            f" | {r['largest_allowed']:.1%} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    case = Case(source="sdt_v2_digits", data="digits", batch_size=450)
    rows += [row for limit in (0.01, 0.02) for row in simulate(case, limit, 450)]
    if len(sys.argv) > 1 or Path(RESULTS / f"gate_{CIFAR.name}.npz").exists():
        case = Case(source=CIFAR, data=sys.argv[1] if len(sys.argv) > 1 else "")
        rows += [row for limit in (0.01, 0.03) for row in simulate(case, limit, 5000)]
    save("gate", rows)
    (RESULTS / "gate.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()

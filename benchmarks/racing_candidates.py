"""The early test on networks that were really pruned: how often it errs, how much it sees.

    python benchmarks/racing_candidates.py      # results/racing_candidates.json and .md

Right and wrong of every image are those that gate.py keeps in results/gate_*.npz: ladders of pruned
networks, measured once. A candidate is one of them on selection images drawn from the pool; it is
raced in 20 random orders, batches of 64, and a false decision is an early rejection of one that the
gate lets pass on all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from checkpoints import CIFAR
from machine import RESULTS, described, save

from primesvt.evaluation.confidence import paired_drop_bound, wilson_interval
from primesvt.evaluation.sequential_test import SequentialTest

POOLS = {"sdt_v2_digits": (450, (0.01, 0.02)), CIFAR.name: (2000, (0.01, 0.03))}
ORDERS, BATCH, LEVEL, ERROR = 20, 64, 0.95, 0.05


def passes(differences: np.ndarray[Any, Any], limit: float, gate: str) -> bool:
    """What the gate says on all images."""
    lost, gained = int((differences > 0).sum()), int((differences < 0).sum())
    drop = (lost - gained) / len(differences)
    if gate == "bound":
        drop = paired_drop_bound(lost, gained, len(differences), level=LEVEL)
    return bool(drop <= limit + 1e-9)


def raced(differences: np.ndarray[Any, Any], race: SequentialTest) -> int:
    """Images seen until rejection, all of them without one."""
    runner = race.start()
    for first in range(0, len(differences), BATCH):
        if runner.add(differences[first : first + BATCH]):
            break
    return runner.images


def rows_of(name: str, images: int, limit: float, gate: str) -> dict[str, Any]:
    stored = np.load(RESULTS / f"gate_{name}.npz")
    right = np.unpackbits(stored["right"], axis=1, count=int(stored["images"])).astype(np.int64)
    generator = np.random.default_rng(0)
    race = SequentialTest(limit=limit, total=images, gate=gate, level=LEVEL, error=ERROR)
    good, wrong, seen, bad = 0, 0, [], 0
    for network in right[1:]:
        chosen = generator.permutation(right.shape[1])[:images]
        differences = right[0, chosen] - network[chosen]
        accepted = passes(differences, limit, gate)
        for _ in range(ORDERS):
            shown = raced(generator.permutation(differences), race)
            if accepted:
                good, wrong = good + 1, wrong + (shown < images)
            else:
                bad += 1
                seen.append(shown / images)
    low, high = wilson_interval(wrong, good) if good else (0.0, 1.0)
    return {
        "pool": name,
        "candidates": len(right) - 1,
        "images": images,
        "limit": limit,
        "gate": gate,
        "passing_races": good,
        "false": wrong,
        "low": low,
        "high": high,
        "refused_races": bad,
        "share_seen": float(np.mean(seen)) if seen else None,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# The early test on pruned networks\n",
        "Made by `python benchmarks/racing_candidates.py`, which says what is measured;"
        f" {ERROR:.0%} of false decisions are promised, at most.\n",
        "| pool | candidates | images | limit | gate | false decisions (95 %)"
        " | images that refused ones saw |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = r["false"] / r["passing_races"] if r["passing_races"] else 0.0
        seen = "" if r["share_seen"] is None else f"{r['share_seen']:.1%}"
        lines.append(
            f"| {r['pool']} | {r['candidates']} | {r['images']:,} | {100 * r['limit']:g} points"
            f" | {r['gate']} | {r['false']} of {r['passing_races']}, {share:.1%}"
            f" ({r['low']:.1%} .. {r['high']:.1%}) | {seen} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def main() -> None:
    rows = [
        rows_of(name, images, limit, gate)
        for name, (images, limits) in POOLS.items()
        if (RESULTS / f"gate_{name}.npz").exists()
        for limit in limits
        for gate in ("point", "bound")
    ]
    save("racing_candidates", rows)
    (RESULTS / "racing_candidates.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()

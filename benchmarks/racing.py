"""How soon a pruned network is rejected, and how often wrongly: simulated candidates.

    python benchmarks/racing.py     # results/racing.json and .md, about a minute

A candidate is a set of paired outcomes of which lost, gained and size are given; its images come in
a random order (numpy seed 0 for the table, 1 for the rules). First the test as it is built, in
batches of 64: share of the images until rejection for true drops of 1.5 to 10 times the limit, and
false rejections of candidates that the gate would just let pass. Then other rules on the same
orders, image by image, all at an error of 5 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import RESULTS, described, save

from primesvt.evaluation.confidence import wilson_interval
from primesvt.evaluation.sequential_test import SequentialTest

ERROR = 0.05
CANDIDATES, BATCH = 200, 64
RULE_ORDERS, REPEATED = 50, 5000
SIZES = (450, 2500, 5000)
LIMITS = (0.01, 0.03)
TIMES = (1.5, 2, 4, 10)
DISAGREEMENTS = (1, 2, 4)
GATES = ("bound", "point")
Floats = npt.NDArray[np.float64]


def ordered(total: int, lost: int, gained: int, orders: int, seed: Any) -> Floats:
    """The same differences in random orders: ``[orders, total]``."""
    found = np.zeros(total)
    found[:lost], found[lost : lost + gained] = 1, -1
    return seed.permuted(np.broadcast_to(found, (orders, total)), axis=1)


def counts(race: SequentialTest, times: float, disagreement: int) -> tuple[int, int] | None:
    """Lost and gained of a candidate; ``times`` 1 is the worst that passes the gate."""
    net = round(times * race.limit * race.total)
    gained = round((disagreement - 1) / 2 * net)
    if times == 1:
        net = int(race.budget(gained))
    return (net + gained, gained) if net + 2 * gained <= race.total else None


def setting(race: SequentialTest, times: float, disagreement: int) -> dict[str, Any]:
    race_row = {"gate": race.gate, "limit": race.limit, "images": race.total}
    return {**race_row, "times": times, "disagreement": disagreement}


def tally(rejected: int, candidates: int) -> dict[str, Any]:
    low, high = wilson_interval(rejected, candidates)
    return {"candidates": candidates, "rejected": rejected, "low": low, "high": high}


def raced(race: SequentialTest, differences: Floats) -> tuple[int, bool]:
    """Images until the decision, and whether it is a rejection."""
    runner = race.start()
    for begin in range(0, race.total, BATCH):
        if runner.add(differences[begin : begin + BATCH]):
            break
    return runner.images, runner.rejected


def table() -> list[dict[str, Any]]:
    """The test as it is built, on every setting."""
    generator = np.random.default_rng(0)
    rows = []
    grid = product(GATES, LIMITS, SIZES, (1, *TIMES), DISAGREEMENTS)
    for gate, limit, total, times, disagreement in grid:
        race = SequentialTest(limit=limit, total=total, gate=gate, error=ERROR)
        pair = counts(race, times, disagreement)
        if pair is None:
            continue
        found = [raced(race, row) for row in ordered(total, *pair, CANDIDATES, generator)]
        rows.append(
            {
                **setting(race, times, disagreement),
                "lost": pair[0],
                "gained": pair[1],
                **tally(sum(out for _, out in found), CANDIDATES),
                "share_of_images": float(np.mean([images for images, _ in found])) / total,
            }
        )
    return rows


class Orders:
    """What the rules see: differences, and the mean that the gate allows the rest of the images."""

    def __init__(self, race: SequentialTest, found: Floats, *, narrowing: bool) -> None:
        self.race, self.found, self.total = race, found, race.total
        self.sums, self.squares = found.cumsum(1), (found**2).cumsum(1)
        budgets = np.full(found.shape, race.budget())
        if narrowing:
            gained = (found < 0).cumsum(1) - (found < 0)
            values, places = np.unique(gained, return_inverse=True)
            budgets = np.array([race.budget(int(v)) for v in values])[places.reshape(gained.shape)]
        spare = budgets - (self.sums - found)
        left = self.total - np.arange(self.total)
        self.certain = spare < -left
        self.means = np.clip(spare / left, -1, 1)

    def first(self, evidence: Floats) -> Floats:
        """Images until the evidence reaches the threshold, or until rejection is certain."""
        hit = evidence >= math.log(1 / ERROR)
        hit[:, :-1] |= self.certain[:, 1:]
        hit[:, -1] = True
        return np.asarray(hit.argmax(1) + 1, dtype=np.float64)

    def bet(self, stakes: Floats | float, risk: float = 0.95) -> Floats:
        """Logarithm of the capital of predictable stakes."""
        stakes = np.minimum(stakes, risk / np.maximum(1 + self.means, risk))
        return np.log1p(stakes * (self.found - self.means)).cumsum(1)


def capital(o: Orders, stakes: tuple[float, ...]) -> Floats:
    paths = np.stack([o.bet(stake) for stake in stakes])
    return np.logaddexp.reduce(paths, axis=0) - math.log(len(stakes))


def mixture(*stakes: float) -> Callable[[Orders], Floats]:
    return lambda o: o.first(capital(o, stakes))


def agrapa(weight: int) -> Callable[[Orders], Floats]:
    """Approximately growth-optimal bet on the running mean, after ``weight`` made-up images."""

    def rule(o: Orders) -> Floats:
        seen = weight + np.arange(o.total)
        mean = (weight * 2 * o.race.limit + o.sums - o.found) / seen
        square = (weight * 3 * o.race.limit + o.squares - o.found**2) / seen
        gap = mean - o.means
        stakes = gap / (np.maximum(square - mean**2, 1e-4) + gap**2)
        return o.first(o.bet(np.maximum(stakes, 0)))

    return rule


def bernstein_serfling(o: Orders) -> Floats:
    """Bardenet and Maillard (arXiv 1309.4029), section 4; look k, every 64, at ERROR / k(k + 1)."""
    n = np.arange(BATCH, o.total + 1, BATCH)
    mean = o.sums[:, n - 1] / n
    deviation = np.sqrt(np.maximum(o.squares[:, n - 1] / n - mean**2, 0))
    log = np.log(5 * (n // BATCH) * (n // BATCH + 1) / ERROR)
    rest = np.where(n <= o.total / 2, 1 - (n - 1) / o.total, (1 - n / o.total) * (1 + 1 / n))
    low = mean - deviation * np.sqrt(2 * rest * log / n) - (7 / 3 + 3 / math.sqrt(2)) * 2 * log / n
    evidence = np.zeros_like(o.found)
    evidence[:, n - 1] = np.where(low > o.race.budget() / o.total, np.inf, 0.0)
    return o.first(evidence)


def sprt(o: Orders) -> Floats:
    """Wald's test between the limit and the true drop, both and the variance known to it."""
    null, drop = o.race.budget() / o.total, o.sums[0, -1] / o.total
    variance = o.squares[0, -1] / o.total - drop**2
    return o.first(
        (drop - null) / variance * (o.sums - np.arange(1, o.total + 1) * (drop + null) / 2)
    )


BETS = (0.25, 0.5, 0.9)
BUILT = "mixture 0.25, 0.5, 0.9, narrowing (built)"
RULES: dict[str, tuple[Callable[[Orders], Floats], bool]] = {
    BUILT: (mixture(*BETS), True),
    "mixture 0.25, 0.5, 0.9": (mixture(0.25, 0.5, 0.9), False),
    "mixture of 8, 0.05 to 0.9": (mixture(0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9), False),
    "single bet 0.3": (mixture(0.3), False),
    "single bet 0.5": (mixture(0.5), False),
    "aGRAPA, 20 made-up images": (agrapa(20), False),
    "aGRAPA, 200 made-up images": (agrapa(200), False),
    "empirical Bernstein-Serfling": (bernstein_serfling, False),
    "Wald SPRT, drop and variance known": (sprt, False),
}


def compared() -> Iterator[dict[str, Any]]:
    """Share of the images that every rule sees."""
    generator = np.random.default_rng(1)
    grid = product(GATES, LIMITS, SIZES, TIMES, DISAGREEMENTS)
    for gate, limit, total, times, disagreement in grid:
        race = SequentialTest(limit=limit, total=total, gate=gate, error=ERROR)
        pair = counts(race, times, disagreement)
        if pair is None:
            continue
        found = ordered(total, *pair, RULE_ORDERS, generator)
        seen = {n: Orders(race, found, narrowing=n) for n in (False, True)}
        yield {
            **setting(race, times, disagreement),
            "share_of_images": {
                name: round(float(rule(seen[narrowing]).mean()) / total, 4)
                for name, (rule, narrowing) in RULES.items()
            },
        }


def again(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the most false rejections, on many fresh orders (seed 2)."""
    worst = max((r for r in rows if r["times"] == 1), key=lambda r: r["rejected"])
    race = SequentialTest(
        limit=worst["limit"], total=worst["images"], gate=worst["gate"], error=ERROR
    )
    generator = np.random.default_rng(2)
    rejected = 0
    for _ in range(REPEATED // 500):
        found = ordered(race.total, worst["lost"], worst["gained"], 500, generator)
        logs = capital(Orders(race, found, narrowing=True), BETS)
        rejected += int((logs.max(1) >= math.log(1 / ERROR)).sum())
    return {**setting(race, 1, worst["disagreement"]), **tally(rejected, REPEATED)}


def chosen(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [r for r in rows if all(r[key] == value for key, value in values.items())]


def wrongly(row: dict[str, Any]) -> str:
    return f"{row['rejected'] / row['candidates']:.1%} ({row['low']:.1%} .. {row['high']:.1%})"


def setting_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| gate | limit | images | 1.5x | 2x | 4x | 10x | false, disagreement 1x | 2x | 4x |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for gate, limit, total in product(GATES, LIMITS, SIZES):
        here = chosen(rows, gate=gate, limit=limit, images=total)
        shares = [
            f"{np.mean([r['share_of_images'] for r in chosen(here, times=times)]):.1%}"
            for times in TIMES
        ]
        wrong = [wrongly(r) for r in chosen(here, times=1)]
        cells = [gate, f"{100 * limit:g} points", f"{total:,}", *shares, *wrong]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rule_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Mean shares, and images relative to the rule as built, by the geometric mean."""
    lines = [
        "| rule | gate | 1.5x | 2x | 4x | 10x | images, built = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for gate, name in product(GATES, RULES):
        shares = [
            f"{np.mean([r['share_of_images'][name] for r in chosen(rows, gate=gate, times=t)]):.1%}"
            for t in TIMES
        ]
        pairs = [r["share_of_images"] for r in chosen(rows, gate=gate)]
        ratio = math.exp(np.mean([math.log(pair[name] / pair[BUILT]) for pair in pairs]))
        lines.append(f"| {' | '.join([name, gate, *shares, f'{ratio:.2f}'])} |")
    return lines


def markdown(results: dict[str, Any], seconds: float) -> str:
    rows, repeated = results["settings"], results["worst_again"]
    wrong = chosen(rows, times=1)
    rejected, tried = sum(r["rejected"] for r in wrong), CANDIDATES * len(wrong)
    here = described()
    lines = [
        "# Rejecting early\n",
        f"Made by `python benchmarks/racing.py`, which says what is measured. {CANDIDATES}"
        f" candidates a setting, error {ERROR:.0%}, seed 0, batches of {BATCH}. Share of the images"
        " seen for true drops of so many times the limit, mean over disagreements of 1, 2 and 4"
        " times the drop where there are enough images; false rejections of candidates at the"
        " gate's edge (disagreement: times the limit), with 95 % interval.\n",
        *setting_lines(rows),
        f"\nAll false rejections: {rejected} of {tried:,}, {wrongly(tally(rejected, tried))}."
        f" The setting with the most of them ({repeated['gate']},"
        f" {100 * repeated['limit']:g} points, {repeated['images']:,} images,"
        f" {repeated['disagreement']}x)"
        f" on {REPEATED:,} fresh orders (seed 2): {wrongly(repeated)}.\n",
        f"## Rules\n\nMean share of the images over all settings, {RULE_ORDERS} orders each,"
        " seed 1, stopped at the image. Narrowing: images gained so far narrow what the bound gate"
        " allows.\n",
        *rule_lines(results["rules"]),
        f"\n{seconds:.0f} seconds. {here}.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    begin = time.perf_counter()
    rows = table()
    results = {"settings": rows, "worst_again": again(rows), "rules": list(compared())}
    save("racing", results)
    text = markdown(results, time.perf_counter() - begin)
    (RESULTS / "racing.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

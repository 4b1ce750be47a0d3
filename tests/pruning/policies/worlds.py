"""Made-up networks, whose costs and savings are known: what policies are held against."""

from __future__ import annotations

import itertools

import numpy as np

from primesvt.channels.widths import WidthGrid, widths
from primesvt.evaluation.evaluator import Measurement
from primesvt.pruning.policies import AccuracyGate, find_policy
from primesvt.pruning.probe_table import Probe, Reference

SIZE, SAMPLES = 10, 10_000
RATES = tuple(k / 10 for k in range(1, 10))


class World:
    """Groups of ten channels; lost samples and distances follow the same rule.

    ``curves[group][removed]`` is the cost of a group alone, ``twist`` what every pair adds beside.
    """

    def __init__(self, curves, weights, *, twist=0.0):
        self.curves, self.weights, self.twist = curves, weights, twist
        self.total = 2 * SIZE * sum(weights.values())
        self.probed, self.measured, self.told = [], [], []
        self.limits, self.exact, self.seed = (), True, 0
        self.reference = Reference(
            context={},
            measurement=Measurement(value=1.0, outcomes=np.ones(SAMPLES, dtype=bool)),
            parameter_bytes=self.total,
        )
        self.grids = [
            WidthGrid(
                group=name,
                positions=1,
                size=SIZE,
                parameters=SIZE * weight,
                widths=widths(SIZE, RATES),
                rates=RATES,
            )
            for name, weight in weights.items()
        ]

    def cost(self, cuts):
        alone = [self.curves[name][SIZE - kept] for name, kept in cuts.items()]
        pairs = sum(a * b for a, b in itertools.combinations(alone, 2))
        return sum(alone) + self.twist * pairs

    def distances(self, wanted, *, around=None, tell=lambda *_: None):
        found = []
        for number, cuts in enumerate(wanted):
            tell(number, len(wanted))
            found.append(self.distance(cuts))
        tell(len(wanted), len(wanted))
        return found

    def distance(self, cuts):
        self.measured.append(dict(cuts))
        return self.cost(cuts)

    def bytes_saved(self, cuts):
        return sum((SIZE - kept) * self.weights[name] for name, kept in cuts.items())

    def probe(self, cuts, *, around=None):
        self.probed.append(dict(cuts))
        return self.judged(cuts)

    def probes(self, wanted, *, tell=lambda *_: None):
        """Layers alone: not counted among the whole networks."""
        return [self.judged(cuts) for cuts in wanted]

    def removal_costs(self, groups):
        costs = {n: np.sort(np.diff(self.curves[n]))[None] for n in groups}
        return {n: np.append(c, [[2 * c.max()]], axis=1) for n, c in costs.items()}

    def tell(self, stage, done, total):
        self.told.append((stage, done, total))

    def judged(self, cuts):
        lost = min(SAMPLES, round(self.cost(cuts)))
        saved = self.bytes_saved(cuts)
        return Probe(
            kind="walk",
            cuts=dict(cuts),
            accuracy=1 - lost / SAMPLES,
            saving=saved / self.total,
            parameter_bytes=self.total - saved,
            samples=SAMPLES,
            lost=lost,
            gained=0,
        )

    def solve(self, allowed, *, policy="allocate", save=None, gate="point", limits=(), **options):
        """What a policy takes; ``options`` are its own."""
        self.limits = limits
        gate = AccuracyGate(kind=gate, allowed=allowed, reference=self.reference)
        return find_policy(policy).from_config(options, gate, save).search(self.grids, self)

    def most(self, allowed):
        """The largest saving of any plan that passes."""
        rows = itertools.product(range(SIZE), repeat=len(self.weights))
        plans = (dict(zip(self.weights, (SIZE - r for r in row), strict=True)) for row in rows)
        costs = ((self.bytes_saved(p), self.cost({k: v for k, v in p.items() if v < SIZE}))
                 for p in plans)  # fmt: skip
        return max(saved for saved, cost in costs if round(cost) <= allowed * SAMPLES + 1e-6)


def world(seed, groups=3, **options):
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(groups)]
    curves = {
        name: np.concatenate([[0], np.cumsum(rng.gamma(1.0, rng.uniform(2, 40), 9))])
        for name in names
    }
    return World(curves, {name: int(rng.integers(1, 60)) for name in names}, **options)

"""Reject a network before it has seen all images, with a bounded probability of being wrong."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from primesvt.evaluation.confidence import paired_drop_bound

__all__ = ["RunningTest", "SequentialTest"]

GATES = ("point", "bound")
# Three bets at once, chosen by benchmarks/racing.py; none may risk more than RISK of its capital.
BETS = np.array([[0.25], [0.5], [0.9]])
RISK = 0.95
ROUNDING = 1e-9  # the gate's

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """Sequential test of whether a network would fail the gate on all ``total`` images.

    It only rejects: a network that is not rejected sees all images, and then the gate decides. With
    right-or-wrong outcomes a network that has seen all of them is rejected exactly if the gate
    rejects it. Of the networks that would pass, at most a share ``error`` is rejected early,
    however often one looks, if the images come in a random order that was drawn without looking
    at the network.

    Before each image, what the gate could still allow bounds the mean of the images that are left.
    A bet on the next difference at the odds of that bound gains nothing on average for a network
    that passes, so a capital of ``1 / error`` is improbable (Ville's inequality): Waudby-Smith and
    Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020
    (arXiv 2006.04347), and "Estimating means of bounded random variables by betting", JRSS B 86
    (2024), section 5 (arXiv 2010.09686).

    Args:
        limit: largest drop that the gate allows, as a difference of mean outcomes, 0 to 1.
        total: images of the full set.
        gate: ``bound`` or ``point``, as in ``policies.gate``.
        level: one-sided confidence level of the bound.
        error: largest probability of rejecting a network which the gate would let pass.
        graded: outcomes are numbers between 0 and 1, not right or wrong.

    Raises:
        ValueError: a value outside what is said here.

    Example:
        >>> race = SequentialTest(limit=0.01, total=1000)
        >>> good, bad = race.start(), race.start()
        >>> good.add(np.zeros(64)), bad.add(np.tile([1, 0, 0, 0], 16))
        (False, True)
    """

    limit: float
    total: int
    gate: str = "bound"
    level: float = 0.95
    error: float = 0.05
    graded: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= 1:
            raise ValueError(
                f"limit is {self.limit}, but must be from 0 to 1; give 3 points as 0.03"
            )
        if self.total < 1:
            raise ValueError(
                f"total is {self.total}, but must be at least 1: the images of the set"
            )
        if self.gate not in GATES:
            raise ValueError(f"unknown gate {self.gate!r}; known: {', '.join(GATES)}")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level is {self.level}, but must be at least 0.5 and below 1")
        if not 0 < self.error <= 0.5:
            raise ValueError(
                f"error is {self.error}, but must be above 0 and at most 0.5, such as 0.05"
            )

    def start(self) -> RunningTest:
        """Start the test of one network, before its first image."""
        return RunningTest(self)

    def budget(self, gained: int = 0) -> float:
        """Largest sum of differences over all images with which the gate lets a network pass.

        ``paired_drop_bound`` grows with the images gained at a fixed drop, so those already seen
        narrow what is allowed. Below ``-total`` where nothing passes.

        Args:
            gained: images that only the pruned network gets right, at least; at most ``total``.

        Example:
            >>> race = SequentialTest(limit=0.03, total=5000)
            >>> point = SequentialTest(limit=0.03, total=5000, gate="point")
            >>> race.budget(), race.budget(100), point.budget()
            (130.0, 120.0, 150.0)
        """
        return _budget(self, gained)


class RunningTest:
    """The sequential test of one network in progress; ``SequentialTest.start`` makes it.

    Attributes:
        images: how many it has seen.
        rejected: it is out. That does not change any more.

    Example:
        >>> runner = SequentialTest(limit=0.01, total=10, gate="point").start()
        >>> runner.add(np.array([1, -1, 0, 1])), runner.mean
        (False, 0.25)
    """

    def __init__(self, test: SequentialTest) -> None:
        self.test = test
        self.images = 0
        self.rejected = test.budget() < -test.total
        self._sum = 0.0
        self._gained = 0
        self._logs = np.zeros((len(BETS), 1))

    @property
    def mean(self) -> float:
        """Mean difference of the images seen, which is the drop on them; 0 before the first."""
        return self._sum / self.images if self.images else 0.0

    @property
    def capital(self) -> float:
        """Capital of the bets, which begin with 1; the network is rejected at ``1 / error``."""
        return math.exp(min(700.0, float(_pooled(self._logs)[-1])))

    def add(self, differences: npt.ArrayLike) -> bool:
        """Add the outcomes of further images; returns whether the network is rejected.

        How the images are cut into calls does not matter.

        Args:
            differences: outcome of the unpruned minus outcome of the pruned network, one an image:
                1 for an image lost, -1 for one gained, 0 where both agree.

        Raises:
            ValueError: more images than ``total``, or differences that cannot be.

        Example:
            >>> SequentialTest(limit=0.02, total=450).start().add([0, 0, 1, 0, -1])
            False
        """
        found = self._checked(differences)
        sums = self._sum + np.append(0.0, found.cumsum())
        gained = self._gained + np.append(0, (found < 0).cumsum())
        left = self.test.total - self.images - np.arange(len(found) + 1)
        values, places = np.unique(gained, return_inverse=True)
        budgets = np.array([self.test.budget(int(value)) for value in values], dtype=np.float64)
        spare = budgets[places] - sums
        lost_for_certain = bool((spare < -left).any())
        means = np.clip(spare[:-1] / left[:-1], -1.0, 1.0)
        stakes = np.minimum(BETS, RISK / np.maximum(1 + means, RISK))
        paths = self._logs + np.log1p(stakes * (found - means)).cumsum(axis=1)
        improbable = bool((_pooled(paths) >= -math.log(self.test.error)).any())
        if len(found):
            self._logs = paths[:, -1:]
        self._sum, self._gained = float(sums[-1]), int(gained[-1])
        self.images += len(found)
        self.rejected = self.rejected or lost_for_certain or improbable
        return self.rejected

    def _checked(self, differences: npt.ArrayLike) -> Floats:
        test, found = self.test, np.asarray(differences)
        if found.ndim != 1 or found.dtype.kind not in "if":
            raise ValueError(
                f"differences have shape {list(found.shape)} and type {found.dtype}, but must be "
                "one vector of signed numbers; subtract outcomes as integers or floats"
            )
        if self.images + len(found) > test.total:
            raise ValueError(
                f"{self.images + len(found)} images were added, but the race has {test.total}; "
                "start a new runner for another pass"
            )
        fits = abs(found) <= 1 if test.graded else np.isin(found, (-1, 0, 1))
        if not fits.all():
            allowed = (
                "from -1 to 1: only outcomes from 0 to 1 can be raced"
                if test.graded
                else "-1, 0 or 1; for outcomes that are not right or wrong take graded=True"
            )
            raise ValueError(f"a difference is {found[~fits][0]}, but must be {allowed}")
        return found.astype(np.float64)


@lru_cache(maxsize=2**14)
def _budget(test: SequentialTest, gained: int) -> float:
    if test.graded:
        return test.total * (test.limit + 2 * ROUNDING)  # sums round, too

    def fails(net: int) -> bool:
        fewest = max(gained, -net)
        drop = net / test.total
        if test.gate == "bound":
            drop = paired_drop_bound(net + fewest, fewest, test.total, level=test.level)
        return drop > test.limit + ROUNDING

    nets = range(-test.total, test.total - 2 * gained + 1)
    return float(nets.start + bisect_left(nets, True, key=fails) - 1)


def _pooled(logs: Floats) -> Floats:
    """Logarithm of the mean capital of all bets."""
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - math.log(len(logs)), dtype=np.float64)

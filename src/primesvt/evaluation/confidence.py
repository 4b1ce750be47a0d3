"""Confidence in measured accuracies, and in the drop between two networks on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

__all__ = [
    "Accuracy",
    "Outcomes",
    "accuracy_of",
    "accuracy_of_outcomes",
    "at_chance",
    "chance_note",
    "mean_drop_bound",
    "paired_drop_bound",
    "wilson_interval",
]


Outcomes = npt.NDArray[np.bool_] | npt.NDArray[np.float64]


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927),
    209-212. Raises ``ValueError`` unless ``0 <= successes <= trials`` and ``trials >= 1``.

    Example:
        >>> low, high = wilson_interval(436, 450)
        >>> f"{low:.4f} {high:.4f}"
        '0.9485 0.9814'
    """
    _check_counts(trials, successes)
    z = _quantile(0.5 + level / 2, level)
    rate, weight = successes / trials, z * z / trials
    middle = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return low, high


def at_chance(right: int, images: int, classes: int) -> bool:
    """Whether guessing explains an accuracy: its 95 % interval reaches down to one in ``classes``.

    Example:
        >>> at_chance(12, 100, 10), at_chance(17, 100, 10), at_chance(0, 100, 10)
        (True, False, True)
    """
    return wilson_interval(right, images)[0] <= 1 / classes


def chance_note(accuracy: Accuracy | None, classes: int, *, name: str = "test") -> tuple[str, ...]:
    """A warning where a network is no better than guessing, with what may be wrong.

    Example:
        >>> chance_note(accuracy_of(0.9, 100), 10)
        ()
        >>> print(*chance_note(accuracy_of(0.1, 100), 10))
        Warning: 10.0% of the 100 test images are right, and guessing among 10 classes gives 10.0%:
        the classes may be in another order than in training, the images normalised otherwise, or
        the trained weights not loaded.
    """
    if accuracy is None or classes < 2:
        return ()
    if not at_chance(round(accuracy.accuracy * accuracy.images), accuracy.images, classes):
        return ()
    return (
        f"Warning: {accuracy.accuracy:.1%} of the {accuracy.images:,} {name} images are right, and"
        f" guessing among {classes:,} classes gives {1 / classes:.1%}: the classes may be in"
        " another order than in training, the images normalised otherwise, or the trained weights"
        " not loaded.",
    )


def paired_drop_bound(lost: int, gained: int, pairs: int, *, level: float = 0.95) -> float:
    """One-sided upper confidence bound of the drop in accuracy, from paired outcomes.

    The score bound of the difference of two dependent proportions: Tango, "Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design", Statistics
    in Medicine 17 (1998), 891-908, one side of it. Without any discordant pair it is
    ``z^2 / (pairs + z^2)``, never 0: so few images cannot prove more.

    Args:
        lost: images that only the unpruned network gets right.
        gained: images that only the pruned network gets right.
        pairs: all images.
        level: one-sided confidence level.

    Example:
        >>> round(paired_drop_bound(0, 0, 450), 4)
        0.006
        >>> paired_drop_bound(9, 4, 450) > (9 - 4) / 450
        True
    """
    _check_counts(pairs, lost, gained, lost + gained)
    z = _quantile(level, level)
    low, high = (lost - gained) / pairs, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _tango(lost, gained, pairs, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def mean_drop_bound(drop: float, deviation: float, pairs: int, *, level: float = 0.95) -> float:
    """One-sided upper bound of a mean paired difference, by the normal approximation.

    For per-sample outcomes that are not just right or wrong. ``deviation`` is the standard
    deviation (n - 1) of the differences. Infinite for a single pair, which shows no spread.

    Example:
        >>> round(mean_drop_bound(0.01, 0.2, 400), 4)
        0.0264
    """
    _check_counts(pairs)
    if pairs == 1:
        return math.inf
    return drop + _quantile(level, level) * deviation / math.sqrt(pairs)


def _tango(lost: int, gained: int, pairs: int, drop: float) -> float:
    """The score statistic of a hypothetical true drop; it falls as that drop grows."""
    linear = -lost - gained + (2 * pairs - lost + gained) * drop
    constant = -gained * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear * linear - 8 * pairs * constant))
    rate = (root - linear) / (4 * pairs)
    variance = pairs * (2 * rate + drop * (1 - drop))
    distance = lost - gained - pairs * drop
    if variance <= 0:
        return -math.inf if distance < 0 else 0.0
    return distance / math.sqrt(variance)


def _quantile(probability: float, level: float) -> float:
    if not 0.5 <= level < 1:
        raise ValueError(f"level is {level}, but must be at least 0.5 and below 1, such as 0.95")
    return NormalDist().inv_cdf(probability)


def _check_counts(total: int, *parts: int) -> None:
    if total < 1 or any(not 0 <= part <= total for part in parts):
        raise ValueError(f"counts {list(parts)} do not fit a total of {total}")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 on one set as a fraction, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    images: int


def accuracy_of(value: float, images: int | None) -> Accuracy | None:
    """A top-1 fraction with its interval; ``None`` without images.

    Example:
        >>> accuracy_of(0.5, 2)
        Accuracy(accuracy=0.5, low=0.0945..., high=0.9054..., images=2)
    """
    if images is None:
        return None
    low, high = wilson_interval(round(value * images), images)
    return Accuracy(accuracy=value, low=low, high=high, images=images)


def accuracy_of_outcomes(correct: npt.NDArray[np.bool_]) -> Accuracy:
    """The accuracy of per-sample outcomes, right or wrong.

    Example:
        >>> accuracy_of_outcomes(np.array([True, False])).accuracy
        0.5
    """
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return Accuracy(accuracy=float(correct.mean()), low=low, high=high, images=len(correct))

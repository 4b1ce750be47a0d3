"""Random pruning: widths of all groups drawn at random, several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from primesvt.channels.widths import PERCENTS, WidthGrid
from primesvt.config import OptionGroup
from primesvt.pruning.policies.base import NetworkProbe, PolicyResult
from primesvt.pruning.policies.ladder import NestedPlans, OneParameterPolicy, climb
from primesvt.registry import POLICIES

__all__ = ["DRAWS", "Random"]

DRAWS = 8
RUNGS = 400  # of a draw, spread over all widths that it passes


class RandomOptions(OptionGroup):
    """Options of ``random``."""

    draws: Annotated[int, Field(ge=1)] = DRAWS
    """Draws of random widths, of which the best is taken."""


@POLICIES("random")
@dataclass(frozen=True, kw_only=True)
class Random(OneParameterPolicy):
    """Random widths: of several draws the one that saves most within the limits.

    A draw gives every group a weight ``u``, uniform between 0 and 1. At ``t`` the rate of a group
    is ``t u``, at most its highest one; so a draw's plans are nested, and some ``t`` has nearly any
    saving. At every saving that is asked for the draws are tried in turn, up to the first that
    passes; where just so much is needed, all of them, and the one of the least drop is taken.

    Source: random search for channel configurations as the baseline of channel pruning, Li et al.
    (CVPR 2022, arXiv 2205.05676). Which channels go is the importance's affair, as there.
    """

    options: RandomOptions = field(default_factory=RandomOptions)

    Options = RandomOptions
    rates = PERCENTS

    def search(self, grids: Sequence[WidthGrid], prober: NetworkProbe) -> PolicyResult:
        """Draw weights of the groups several times, and choose the best plan."""
        plans = self.begin(grids, prober)
        generator = np.random.default_rng(prober.seed)
        weights = 1 - generator.random((self.options.draws, len(grids)))  # none is 0
        names = [grid.group for grid in grids]  # as given, so the order of sizes changes no draw
        ladders = [_ladder(plans.grids, dict(zip(names, row, strict=True))) for row in weights]
        return self.end(plans, climb(plans, ladders))


def _ladder(grids: Sequence[WidthGrid], weights: Mapping[str, float]) -> NestedPlans:
    """The nested plans of one draw, at rates in proportion to its weights."""
    steps = sorted(rate / weights[grid.group] for grid in grids for rate in grid.widths.values())
    places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), RUNGS)).round().astype(int))

    def at(t: float) -> Mapping[str, int]:
        return {grid.group: grid.at(t * weights[grid.group]) for grid in grids}

    return NestedPlans(rungs=[steps[place] for place in places], at=at)

"""What an importance may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from primesvt.calibration import ActivationStatistics
from primesvt.channels import ChannelGraph, ChannelGroup

__all__ = ["Criterion", "CriterionContext", "Scores"]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CriterionContext:
    """The unpruned network, its channel graph, and what calibration inputs showed of it.

    ``activity`` is ``None`` where there are no calibration inputs; ``seed`` is for draws.
    """

    model: nn.Module
    graph: ChannelGraph
    activity: ActivationStatistics | None = None
    seed: int = 0

    @property
    def seen(self) -> ActivationStatistics:
        """The activity; ``ValueError`` where nothing was calibrated."""
        if self.activity is None:
            raise ValueError(
                "this importance needs calibration inputs, and there are none; give calibration=,"
                " or choose l2, l2_folded, l1 or random"
            )
        return self.activity


Criterion = Callable[[CriterionContext, ChannelGroup], Scores]

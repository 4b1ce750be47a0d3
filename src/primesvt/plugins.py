"""What other packages extend: policies, importance criteria and recoveries, with their decorators.

A decorator gives a class or function a name in this process. A package of its own names it in an
entry-point group instead, so that the command line finds it too: ``primesvt.policies``,
``primesvt.importances``, ``primesvt.recoveries`` (CONTRIBUTING.md has an example of each).

Example:
    >>> @policy("narrowest")
    ... class Narrowest(Policy):
    ...     def search(self, grids, prober):
    ...         probe = prober.probe({grid.group: min(grid.widths) for grid in grids})
    ...         return PolicyResult.of(grids, probe, self.gate.judge(probe))
    >>> from primesvt.registry import POLICIES
    >>> POLICIES.find("narrowest") is Narrowest
    True
"""

from primesvt.calibration import ActivationStatistics
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.widths import WidthGrid
from primesvt.config import OptionGroup
from primesvt.importance import CriterionContext, Scores, criterion
from primesvt.pruning.policies import (
    AccuracyGate,
    GateDecision,
    LayerCut,
    NetworkProbe,
    Policy,
    PolicyResult,
)
from primesvt.pruning.probe_table import Probe
from primesvt.recovery import Recovery
from primesvt.registry import POLICIES, RECOVERIES

__all__ = [
    "AccuracyGate",
    "ActivationStatistics",
    "ChannelGraph",
    "ChannelGroup",
    "CriterionContext",
    "GateDecision",
    "LayerCut",
    "NetworkProbe",
    "OptionGroup",
    "Policy",
    "PolicyResult",
    "Probe",
    "Recovery",
    "Scores",
    "WidthGrid",
    "criterion",
    "policy",
    "recovery",
]

policy = POLICIES
recovery = RECOVERIES

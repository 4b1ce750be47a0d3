"""What other packages extend: policies, criteria, recoveries, families, export formats.

A decorator gives a class or function a name in this process. A package of its own names it in an
entry-point group instead, so that the command line finds it too: ``primesvt.policies``,
``primesvt.importances``, ``primesvt.recoveries``, ``primesvt.families`` or
``primesvt.export_formats`` (CONTRIBUTING.md has an example of each).

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
from primesvt.exporting.formats import ExportFormat, ExportJob, FileFormat, Payload
from primesvt.importance import CriterionContext, Scores, criterion
from primesvt.models.families import Family
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
from primesvt.registry import EXPORT_FORMATS, FAMILIES, POLICIES, RECOVERIES

__all__ = [
    "AccuracyGate",
    "ActivationStatistics",
    "ChannelGraph",
    "ChannelGroup",
    "CriterionContext",
    "ExportFormat",
    "ExportJob",
    "Family",
    "FileFormat",
    "GateDecision",
    "LayerCut",
    "NetworkProbe",
    "OptionGroup",
    "Payload",
    "Policy",
    "PolicyResult",
    "Probe",
    "Recovery",
    "Scores",
    "WidthGrid",
    "criterion",
    "export_format",
    "family",
    "policy",
    "recovery",
]

export_format = EXPORT_FORMATS
family = FAMILIES
policy = POLICIES
recovery = RECOVERIES

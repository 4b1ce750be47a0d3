"""Small networks of every family that really spike, and what calibration inputs show of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from primesvt.calibration import ActivationStatistics, calibration_of
from primesvt.channels import ChannelGraph, ChannelGroup, trace
from primesvt.importance import CriterionContext
from primesvt.models import create_model, list_models

from .channels.firing import excite
from .families.cases import CASES

FAMILIES = tuple(case.family for case in CASES)


@dataclass(frozen=True, kw_only=True)
class Lively:
    """A network whose neurons fire, inputs for it, its graph and its activity."""

    model: nn.Module
    x: Tensor
    graph: ChannelGraph
    activity: ActivationStatistics

    @property
    def evidence(self) -> CriterionContext:
        return CriterionContext(model=self.model, graph=self.graph, activity=self.activity)


def watched(model: nn.Module, x: Tensor, *, batch: int = 8) -> Lively:
    """What inputs show of a network, all its free groups asked about."""
    graph = trace(model, x[:2])
    return Lively(model=model, x=x, graph=graph, activity=seen(model, graph, x, batch=batch))


def seen(
    model: nn.Module, graph: ChannelGraph, x: Tensor, *, batch: int = 8
) -> ActivationStatistics:
    calibration = calibration_of(x, batch_size=batch)
    return ActivationStatistics(
        model=model, graph=graph, groups=free(graph), calibration=calibration
    )


def free(graph: ChannelGraph) -> tuple[ChannelGroup, ...]:
    """Every group that may be cut, residual streams too."""
    return tuple(g for g in graph if g.status == "free" and g.kind != "heads")


@functools.cache
def lively(family: str) -> Lively:
    """The family's smallest registered network, of a seed that makes every neuron fire."""
    name = f"{family}_digits" if f"{family}_digits" in list_models() else f"{family}_small"
    for seed in range(50):
        torch.manual_seed(seed)
        model = create_model(name).eval()
        size = (8, 8) if name.endswith("digits") else (16, 16)
        x = torch.rand(16, model.config.in_channels, *size)
        if excite(model, x, seed):
            return watched(model.eval(), x)
    raise AssertionError(f"no seed makes all neurons of {name} fire")

"""Networks on which a wrong cut shows, and what a cut should have left of them.

Batch norms are random and every neuron fires at 2 to 70 %. What removal means is taken from the
hand-written masks of tests/families, not from any graph.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from primesvt.channels import ChannelGraph, ChannelGroup, trace
from primesvt.models import create_model, reset

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.channels.firing import NORMS, excite, record
from tests.families.cases import CASES
from tests.families.cuts import gone

FAMILIES = {case.family: case for case in CASES}
Cuts = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network, images for it, its groups, and how much its neurons fire."""

    name: str
    family: str
    time_steps: int
    model: nn.Module
    images: Tensor
    graph: ChannelGraph
    firing: tuple[float, float]


def subject(family: str, time_steps: int) -> Subject:
    """A network whose neurons all fire, and whose batch norms tell channels apart."""
    name = f"{family}_small"
    for seed in range(100):
        torch.manual_seed(seed)
        model = create_model(name, time_steps=time_steps).eval()
        images = torch.rand(2, model.config.in_channels, 32, 32)
        if excite(model, images, seed) and all(map(told_apart, model.modules())):
            spikes = record(model, images)[1].values()
            rates = [float((s != 0).double().mean()) for s in spikes]
            return Subject(
                name=name,
                family=family,
                time_steps=time_steps,
                model=model,
                images=images,
                graph=trace(model, images[:1]),
                firing=(min(rates), max(rates)),
            )
    raise RuntimeError(f"no seed makes all neurons of {name} fire")


def told_apart(module: nn.Module) -> bool:
    """Whether no two channels of a batch norm have the same weight."""
    return not isinstance(module, NORMS) or len(module.weight.unique()) == len(module.weight)


def copied(model: nn.Module) -> nn.Module:
    reset(model)
    return copy.deepcopy(model)


def equals_removal(case: Subject, logits: Tensor, cuts: Callable[[], Cuts]) -> str:
    """Whether the output is that of the original whose readers ignore the removed channels."""
    try:
        removed = cuts()
    except ValueError as error:
        return f"no ({error})"
    reference = copied(case.model).double()
    for name, kept in removed.items():
        FAMILIES[case.family].ignore(reference, name, gone(kept, case.graph[name].size))
    with torch.no_grad():
        wanted = reference(case.images.double())
    return "yes" if torch.allclose(logits, wanted, rtol=1e-9, atol=1e-12) else "no (other output)"


def cuts_of(case: Subject, small: nn.Module) -> Cuts:
    """Which channels a smaller model kept; ``ValueError`` where tied layers differ in them."""
    found = {}
    for group in case.graph:
        if group.status == "free" and group.kind != "heads":
            found[group.name] = kept_channels(case, small, group)
    return found


def kept_channels(case: Subject, small: nn.Module, group: ChannelGroup) -> np.ndarray:
    """Kept indices ``[positions, k]`` of a group, from the batch norms behind its layers."""
    found: set[int] | None = None
    for member in group.followers:
        path, _, tensor = member.tensor.rpartition(".")
        if tensor != "weight" or not isinstance(case.model.get_submodule(path), NORMS):
            continue
        before = case.model.get_parameter(member.tensor).tolist()
        left = set(small.get_parameter(member.tensor).tolist())
        ids = case.graph.ids(group, member)
        kept = {int(i) for i, value in zip(ids, before, strict=True) if value in left and i >= 0}
        if found is not None and kept != found:
            raise ValueError(f"layers of {group.name} keep different channels")
        found = kept
    if found is None:
        raise ValueError(f"no batch norm tells what {group.name} keeps")
    rows = [
        [i % group.size for i in sorted(found) if i // group.size == p]
        for p in range(group.positions)
    ]
    if len({len(each) for each in rows}) > 1 or not rows[0]:
        raise ValueError(f"heads of {group.name} keep different numbers of channels")
    return np.array(rows)

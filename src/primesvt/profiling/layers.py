"""Parameters and bytes of layers and channel groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.models.forward import state_tensors

__all__ = ["LayerRow", "group_bytes", "group_parameters", "inventory"]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer with a weight: its size, and the channel group that it writes.

    Attributes:
        layer: module name.
        parameters: its own parameters.
        group: the channel group that it writes, or goes along with.
        frees: parameter bytes that removing all channels of the group would free, in every member.
        prunable: it stands for a group that can be cut.
        reason: why not, where it is not.
    """

    layer: str
    parameters: int
    group: str
    frees: int
    prunable: bool
    reason: str


def inventory(model: nn.Module, graph: ChannelGraph) -> list[LayerRow]:
    """Every layer with a weight: its parameters, its channel group, and whether it can be pruned.

    A layer that writes a prunable group stands for it. Vectors beside a weight (batch norms) are no
    layers of their own: they go with the channels.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> for row in inventory(net, trace(net, torch.zeros(1, 4))):
        ...     print(row.layer, row.parameters, row.frees, row.prunable, row.reason)
        0 30 168 True
        2 14 0 False reaches the model's output
    """
    rows = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if all(parameter.dim() < 2 for parameter in own):
            continue
        written = [
            group
            for group in graph
            if group.kind != "heads" and any(m.module == name for m in group.producers)
        ]
        written.sort(key=lambda group: not group.prunable)
        following = [group for group in graph if any(m.module == name for m in group.followers)]
        group = next(iter(written or following), None)
        prunable = bool(written) and written[0].prunable
        rows.append(
            LayerRow(
                layer=name or "(model)",
                parameters=sum(parameter.numel() for parameter in own),
                group=group.name if group else "",
                frees=group_bytes(model, graph, group) if group and group.status == "free" else 0,
                prunable=prunable,
                reason="" if prunable else _reason(group, written=bool(written)),
            )
        )
    return rows


def _reason(group: ChannelGroup | None, *, written: bool) -> str:
    """Why a layer does not stand for a prunable group."""
    if group is None:
        return "no channel group was found in its output"
    if group.status == "protected":
        return f"reaches the model's {group.reason}"
    if group.status == "frozen":
        return group.reason
    if not written:
        return f"goes with {group.name}"
    return "writes only a residual stream"


def group_bytes(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> int:
    """Parameter bytes that belong to the channels of a group, over all its members."""
    return sum(
        round(share * tensor.numel() * tensor.element_size())
        for tensor, share in _shares(model, graph, group)
    )


def group_parameters(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup, *, members: bool = False
) -> int:
    """Parameters of the layers that write a group; with ``members``, all of the group's channels.

    This is what makes a layer large in the order of the walk (docs/method.md).
    """
    if members:
        return sum(round(share * tensor.numel()) for tensor, share in _shares(model, graph, group))
    modules = dict.fromkeys(member.module for member in group.producers)
    unique = {
        id(p): p.numel() for name in modules for p in _own_parameters(model.get_submodule(name))
    }
    return sum(unique.values())


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of a module without its parts, and those that its weights are computed from."""
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        yield from module.get_submodule("parametrizations").parameters()


def _shares(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup
) -> list[tuple[nn.Parameter, float]]:
    """Parameters that a group lies on, and the share of each that its channels take."""
    state = state_tensors(model)
    rest: dict[int, tuple[nn.Parameter, list[float]]] = {}
    for name in dict.fromkeys(member.tensor for member in group.members):
        tensor = state.get(name)  # none for a plain attribute
        if isinstance(tensor, nn.Parameter) and id(tensor) not in rest:
            axes = [m for m in group.members if m.tensor == name]
            others = [float((graph.ids(group, m) < 0).mean()) for m in axes]
            rest[id(tensor)] = (tensor, others)
    return [(tensor, 1 - prod(others)) for tensor, others in rest.values()]

"""What a network costs: parameters, buffers, membrane potentials, activations."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from primesvt._files import safetensors_bytes
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.models import reset
from primesvt.models.forward import state_tensors, unwrap

__all__ = [
    "LayerRow",
    "batch_of",
    "buffer_bytes",
    "file_bytes",
    "group_bytes",
    "group_parameters",
    "inventory",
    "membrane_bytes",
    "parameter_bytes",
    "parameter_count",
    "peak_activation_bytes",
]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer of the inventory.

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


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, shared ones once: the memory that savings are measured in.

    Example:
        >>> parameter_bytes(nn.Linear(3, 2))
        32
    """
    return sum(p.numel() * p.element_size() for p in model.parameters())


def buffer_bytes(model: nn.Module) -> int:
    """Bytes of all buffers (running statistics of batch norms), shared ones once.

    Example:
        >>> buffer_bytes(nn.BatchNorm2d(4))
        40
    """
    return sum(b.numel() * b.element_size() for b in model.buffers())


def file_bytes(model: nn.Module) -> int:
    """Bytes of ``model.safetensors`` on the disk: all tensors, shared ones under each name.

    Example:
        >>> file_bytes(nn.Linear(3, 2)) - parameter_bytes(nn.Linear(3, 2))  # names and shapes
        144
    """
    state = unwrap(model).state_dict()
    tensors = {name: each.clone() for name, each in state.items() if isinstance(each, Tensor)}
    return len(safetensors_bytes(tensors))


def inventory(model: nn.Module, graph: ChannelGraph) -> list[LayerRow]:
    """Every layer with a weight: what it holds, and whether it can be pruned.

    A layer that writes a prunable group stands for it. Vectors beside a weight (batch norms) are no
    layers of their own: they go with the channels.

    Example:
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
        if any(parameter.dim() > 1 for parameter in own):
            rows.append(_row(model, graph, name, sum(p.numel() for p in own)))
    return rows


def _row(model: nn.Module, graph: ChannelGraph, layer: str, parameters: int) -> LayerRow:
    written = [
        group
        for group in graph
        if group.kind != "heads" and any(m.module == layer for m in group.producers)
    ]
    written.sort(key=lambda group: not group.prunable)
    following = [group for group in graph if any(m.module == layer for m in group.followers)]
    group = next(iter(written or following), None)
    prunable = bool(written) and written[0].prunable
    return LayerRow(
        layer=layer or "(model)",
        parameters=parameters,
        group=group.name if group else "",
        frees=group_bytes(model, graph, group) if group and group.status == "free" else 0,
        prunable=prunable,
        reason="" if prunable else _reason(group, written=bool(written)),
    )


def _reason(group: ChannelGroup | None, *, written: bool) -> str:
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
    """Parameter bytes that hold the channels of a group, over all its members."""
    return sum(
        round(share * tensor.numel() * tensor.element_size())
        for tensor, share in _held(model, graph, group)
    )


def group_parameters(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup, *, members: bool = False
) -> int:
    """Parameters of the layers that write a group, or with ``members`` all that hold its channels.

    This is what makes a layer large in the order of the walk (docs/method.md).
    """
    if members:
        return sum(round(share * tensor.numel()) for tensor, share in _held(model, graph, group))
    modules = dict.fromkeys(member.module for member in group.producers)
    unique = {
        id(p): p.numel()
        for name in modules
        for p in model.get_submodule(name).parameters(recurse=False)
    }
    return sum(unique.values())


def _held(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup
) -> list[tuple[nn.Parameter, float]]:
    """Parameters that a group lies on, and the share of each that its channels take."""
    state = state_tensors(model)
    rest: dict[int, tuple[nn.Parameter, list[float]]] = {}
    for name in dict.fromkeys(member.tensor for member in group.members):
        tensor = state[name]
        if isinstance(tensor, nn.Parameter) and id(tensor) not in rest:
            axes = [m for m in group.members if m.tensor == name]
            others = [float((graph.ids(group, m) < 0).mean()) for m in axes]
            rest[id(tensor)] = (tensor, others)
    return [(tensor, 1 - prod(others)) for tensor, others in rest.values()]


def membrane_bytes(model: nn.Module, example: tuple[Any, ...]) -> int:
    """Bytes of all membrane potentials per sample, measured on one forward pass.

    One potential per neuron, whatever the number of time steps; the first axis of the example is
    the batch.
    """
    sizes: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, base.MemoryModule):

            def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                current = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                steps = len(current) if getattr(module, "step_mode", "s") == "m" else 1
                sizes[name] = current.numel() // steps * current.element_size()

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        _forward(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes.values()) // batch_of(example)


def batch_of(example: tuple[Any, ...]) -> int:
    """Samples in example inputs: the first axis of the first tensor."""
    return next((len(x) for x in tree_leaves(example) if isinstance(x, Tensor) and x.ndim), 1)


def peak_activation_bytes(model: nn.Module, example: tuple[Any, ...]) -> int:
    """Most bytes that tensors made by one forward pass hold at the same time.

    Counts every operator's result while it lives, as plain PyTorch runs it: temporary values
    inside an operator are not seen. It is for the whole batch of the example.
    """
    counter = _LiveBytes()
    with counter:
        _forward(model, example)
    return counter.peak


class _LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _forward(model: nn.Module, example: tuple[Any, ...]) -> None:
    """One forward pass that leaves no trace behind."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    reset(model)
    try:
        with torch.no_grad():
            model(*example)
    finally:
        reset(model)
        for module, training in flags:
            module.training = training

"""Which layer feeds which, and along which axis channels run, read off one small forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from primesvt.channels import ChannelGroup
from primesvt.models import reset
from primesvt.models.forward import LAYERS, evaluating, hooked, in_its_dtype
from primesvt.models.neurons import neurons
from primesvt.models.norms import is_norm, norms_of

__all__ = ["ModuleGraph", "channel_axis", "trace_modules"]

# They leave every channel where it is.
_POOLS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.AvgPool2d: 2, nn.MaxPool3d: 3}
_PASSING = (*_POOLS, nn.Dropout)


@dataclass(frozen=True, kw_only=True)
class ModuleGraph:
    """The layers, norms and neurons of a network in forward order, and which feeds which.

    Attributes:
        order: by first call.
        feeds: module -> modules that read its output as it is, or as a view.
        norms: the batch norms.
        axes: neuron -> the axis of its input that holds channels, where that is known.
        passing: modules that leave every channel where it is.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        >>> trace_modules(net, (torch.zeros(3, 2),)).norm_after("0")
        True
    """

    order: tuple[str, ...]
    feeds: dict[str, tuple[str, ...]] = field(repr=False)
    norms: frozenset[str] = field(repr=False)
    axes: dict[str, int] = field(repr=False)
    passing: frozenset[str] = field(default=frozenset(), repr=False)

    def neurons_after(self, layer: str) -> tuple[str, ...]:
        """Neurons that a layer drives, through norms and poolings alone."""
        found: dict[str, None] = {}
        for name in self.feeds.get(layer, ()):
            if name in self.axes:
                found[name] = None
            elif name in self.passing:
                found |= dict.fromkeys(self.neurons_after(name))
        return tuple(found)

    def norm_after(self, layer: str) -> bool:
        """Whether only batch norms read a layer's output."""
        readers = self.feeds.get(layer, ())
        return bool(readers) and self.norms.issuperset(readers)

    def neurons_of(self, group: ChannelGroup) -> tuple[str, ...]:
        """Neurons whose channels are those of a group: behind its producers."""
        found: dict[str, None] = {}
        for member in group.producers:
            found |= dict.fromkeys(self.neurons_after(member.module))
        return tuple(found)

    def norms_from(self, place: int) -> tuple[str, ...]:
        """Norms that run after a place in the order."""
        return tuple(name for name in self.order[place + 1 :] if name in self.norms)


def channel_axis(layer: nn.Module) -> int:
    """The axis of a layer's input and output that holds channels, counted from the end."""
    dims = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    return next(-1 - n for kind, n in dims.items() if isinstance(layer, kind))


def trace_modules(model: nn.Module, example: tuple[Any, ...]) -> ModuleGraph:
    """Find which modules feed which, from one forward pass."""
    watch = _Watch(model)
    with evaluating(model), hooked(watch.hooks()):
        reset(model)
        model(*in_its_dtype(model, example))
        reset(model)
    return watch.wiring()


class _Watch:
    """Records which module made every tensor; keeps all alive, so that addresses are unique."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.spiking = {id(module) for module in neurons(model)}
        self.made: dict[int, tuple[str, Tensor, int]] = {}  # storage -> maker, output, channel axis
        self.order: dict[str, None] = {}
        self.feeds: dict[str, dict[str, None]] = {}
        self.axes: dict[str, int] = {}

    def hooks(self) -> Iterator[RemovableHandle]:
        for name, module in self.model.named_modules():
            known = id(module) in self.spiking or isinstance(module, (*LAYERS, *_PASSING))
            if known or is_norm(module):
                yield module.register_forward_hook(partial(self._note, name))

    def wiring(self) -> ModuleGraph:
        norms = set(norms_of(self.model))
        passing = {n for n, m in self.model.named_modules() if isinstance(m, _PASSING)}
        return ModuleGraph(
            order=tuple(self.order),
            feeds={name: tuple(readers) for name, readers in self.feeds.items()},
            norms=frozenset(norms & self.order.keys()),
            axes=dict(self.axes),
            passing=frozenset(passing | norms),
        )

    def _note(self, name: str, module: nn.Module, args: Any, out: Any) -> None:
        self.order.setdefault(name)
        given = next((x for x in tree_leaves(args) if isinstance(x, Tensor)), None)
        made = self.made.get(_storage(given)) if given is not None else None
        if made is not None and given is not None:
            self.feeds.setdefault(made[0], {})[name] = None
            if id(module) in self.spiking:
                axis = _same_axis(made[1], made[2], given)
                if axis is not None:
                    self.axes[name] = axis
        if isinstance(out, Tensor) and id(module) not in self.spiking:
            axis = _axis(module, 1 if made is None else made[2])
            self.made[_storage(out)] = (name, out, axis % out.ndim)


def _axis(module: nn.Module, before: int) -> int:
    """The axis of a module's output that holds channels; before is that of its input's maker."""
    if isinstance(module, LAYERS):
        return channel_axis(module)
    pool = next((n for kind, n in _POOLS.items() if isinstance(module, kind)), None)
    if pool is not None:  # ours also take [T, B, C, H, W]
        return -1 - pool
    return before if isinstance(module, nn.Dropout) else 1


def _storage(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.untyped_storage().data_ptr()


def _same_axis(base: Tensor, axis: int, view: Tensor) -> int | None:
    """The axis of a view that is a given axis of its base; ``None`` where that is not clear."""
    wanted = (base.shape[axis], base.stride(axis))
    found = [a for a in range(view.ndim) if (view.shape[a], view.stride(a)) == wanted]
    return found[0] if len(found) == 1 else None

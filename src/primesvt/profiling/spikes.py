"""Find the tensors of a forward pass that hold spikes, followed from neurons through operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from primesvt.models.forward import hooked
from primesvt.models.neurons import IntegerNeuron, neurons, own_neurons

__all__ = ["ValueOrigin", "follow", "given", "marking", "origin_of", "spikes_in"]

aten = torch.ops.aten
_MARK = "_primesvt_origin"
# Their results are sums of spikes: real numbers, no longer zeros and ones.
_SUMS = {aten.sum, aten.mean, aten.cumsum, aten.avg_pool2d, aten._adaptive_avg_pool2d}
# Comparisons by which neurons of an unknown class fire.
_DECISIONS = {aten.ge, aten.gt, aten.le, aten.lt, aten.heaviside}


@dataclass(frozen=True, kw_only=True)
class ValueOrigin:
    """Whether the values of a tensor are spikes, and the value of one.

    Attributes:
        spikes: from neurons; otherwise real numbers: the model's input, a current, a potential.
        unit: the value of one spike.
        repeats: how many times the same values stand there, one after another.
    """

    spikes: bool
    unit: float = 1.0
    repeats: int = 1


def given(batch: Any) -> None:
    """Mark the tensors of a batch as the model's input."""
    for tensor in _tensors(batch):
        setattr(tensor, _MARK, ValueOrigin(spikes=False))


def origin_of(tensor: Tensor) -> ValueOrigin | None:
    """The origin of a tensor's values; ``None`` for weights and for results of comparisons."""
    found: ValueOrigin | None = getattr(tensor, _MARK, None)
    return found


def spikes_in(tensor: Tensor) -> Tensor | None:
    """The number of spikes in each value, or ``None`` where values are real numbers.

    Spikes come from a neuron through views, poolings, gates and sums of residual streams; one that
    counts three is three spikes, and one of either sign is a spike. Values 0 and 1 of unknown
    origin count as spikes too, those of the model's input and of a sum never.

    Example:
        >>> spikes_in(torch.tensor([0.0, 1.0, 1.0])).tolist(), spikes_in(torch.tensor([0.5]))
        ([0.0, 1.0, 1.0], None)
    """
    origin = origin_of(tensor)
    if origin is None:
        return tensor if bool(((tensor == 0) | (tensor == 1)).all()) else None
    if not origin.spikes:
        return None
    counts = tensor / origin.unit if origin.unit != 1 else tensor
    if origin.unit not in (0.25, 0.5, 1.0):  # a unit that no float holds exactly
        nearest = counts.round()
        counts = torch.where((counts - nearest).abs() < 1e-4, nearest, counts)
    return counts.abs() if bool((counts == counts.round()).all()) else None


def follow(func: Any, args: Any, out: Any, *, contracted: bool) -> None:
    """Mark an operator's outputs by the origin of its inputs; ``contracted``: it sums products."""
    origin = _after(func, _tensors(args), contracted=contracted)
    for tensor in _tensors(out):
        setattr(tensor, _MARK, _repeated(origin, func, args, tensor))


@contextmanager
def marking(
    model: nn.Module, note: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    """Mark the outputs of all neurons as spikes, and call ``note(name, neuron, input, spikes)``.

    Of modules that people wrote, those are neurons that were seen to fire.
    """
    units = {id(module): 1.0 for module in neurons(model)}
    units |= {id(module): unit for _, module, unit in own_neurons(model)}

    def mark(name: str, neuron: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        unit = 1 / neuron.norm if isinstance(neuron, IntegerNeuron) else units[id(neuron)]
        for tensor in _tensors(out):
            setattr(tensor, _MARK, ValueOrigin(spikes=True, unit=unit))
        note(name, neuron, _tensors((args, kwargs))[0], _tensors(out)[0])

    handles = (
        module.register_forward_hook(partial(mark, name), with_kwargs=True)
        for name, module in model.named_modules()
        if id(module) in units
    )
    with hooked(handles):
        yield


def _after(func: Any, inputs: list[Tensor], *, contracted: bool) -> ValueOrigin | None:
    """The origin of an operator's result, derived from the origins of its inputs."""
    origins = [origin_of(tensor) for tensor in inputs]
    known = [origin for origin in origins if origin is not None]
    overload = getattr(func, "overloadpacket", func)
    if not known or overload in _DECISIONS:
        return None
    if overload in _SUMS:
        return ValueOrigin(spikes=False)
    if contracted or not all(origin.spikes for origin in known):
        return ValueOrigin(spikes=False, repeats=min(origin.repeats for origin in known))
    if len(known) < len(origins):
        return None
    if overload in (aten.mul, aten.mul_):
        return ValueOrigin(spikes=True, unit=prod(train.unit for train in known))
    return known[0] if len({train.unit for train in known}) == 1 else None


def _repeated(origin: ValueOrigin | None, func: Any, args: Any, out: Tensor) -> ValueOrigin | None:
    """The origin of a result; with the number of repeats where an image was repeated over time."""
    overload = getattr(func, "overloadpacket", func)
    if origin is None or origin.spikes or overload not in (aten.expand, aten.repeat):
        return origin
    times = out.numel() // max(1, args[0].numel())
    return replace(origin, repeats=origin.repeats * times)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]

"""Which tensors of a forward pass hold spikes: followed from the neurons, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from primesvt.models.neurons import IntegerNeuron, neurons

__all__ = ["ValueOrigin", "follow", "given", "marking", "origin_of", "spikes_in"]

aten = torch.ops.aten
_MARK = "_primesvt_origin"
# Their results are sums of spikes: real numbers, no longer zeros and ones.
_SUMS = {aten.sum, aten.mean, aten.cumsum, aten.avg_pool2d, aten._adaptive_avg_pool2d}
# Comparisons by which neurons of an unknown class fire.
_DECISIONS = {aten.ge, aten.gt, aten.le, aten.lt, aten.heaviside}


@dataclass(frozen=True, kw_only=True)
class ValueOrigin:
    """Where the values of a tensor come from.

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
    """What is known of a tensor; ``None`` for weights, and where a comparison decided."""
    found: ValueOrigin | None = getattr(tensor, _MARK, None)
    return found


def spikes_in(tensor: Tensor) -> Tensor | None:
    """How many spikes each value stands for, or ``None`` where values are real numbers.

    Spikes come from a neuron through views, poolings, gates and sums of residual streams; one that
    counts three is three spikes. Values 0 and 1 of unknown origin count as spikes too, those of the
    model's input and of a sum never.

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
    whole = bool((counts == counts.round()).all()) and bool((counts >= 0).all())
    return counts if whole else None


def follow(func: Any, args: Any, out: Any, *, contracted: bool) -> None:
    """Mark what an operator made by what it was given; ``contracted`` are sums of products."""
    origin = _after(func, _tensors(args), contracted=contracted)
    for tensor in _tensors(out):
        setattr(tensor, _MARK, _repeated(origin, func, args, tensor))


@contextmanager
def marking(
    model: nn.Module, seen: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    """Mark the outputs of all neurons as spikes; ``seen(name, neuron, input, spikes)`` is told."""
    spiking = {id(module) for module in neurons(model)}
    handles = []
    for name, module in model.named_modules():
        if id(module) in spiking:

            def mark(neuron: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
                for tensor in _tensors(out):
                    setattr(tensor, _MARK, ValueOrigin(spikes=True, unit=_unit(neuron)))
                seen(name, neuron, _tensors((args, kwargs))[0], _tensors(out)[0])

            handles.append(module.register_forward_hook(mark, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _after(func: Any, inputs: list[Tensor], *, contracted: bool) -> ValueOrigin | None:
    """The origin of a result, as far as its inputs tell."""
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
    """The origin after an image was shown at several time steps."""
    overload = getattr(func, "overloadpacket", func)
    if origin is None or origin.spikes or overload not in (aten.expand, aten.repeat):
        return origin
    times = out.numel() // max(1, args[0].numel())
    return replace(origin, repeats=origin.repeats * times)


def _unit(neuron: nn.Module) -> float:
    return 1 / neuron.norm if isinstance(neuron, IntegerNeuron) else 1.0


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]

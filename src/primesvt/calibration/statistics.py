"""Statistics of a network's activations, each gathered in one pass when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from primesvt.calibration.inputs import CalibrationSet
from primesvt.calibration.moments import Moments
from primesvt.calibration.norm_inputs import NormInput, seen_by
from primesvt.calibration.readers import Consumer, patches, readers_of
from primesvt.calibration.wiring import ModuleGraph, channel_axis, trace_modules
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.models.forward import evaluating, hooked

__all__ = ["ActivationStatistics"]


@dataclass(kw_only=True)
class ActivationStatistics:
    """Statistics of an unpruned network's activations on calibration inputs.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        groups: the channel groups that will be asked about.
        calibration: the inputs.

    Example:
        >>> from primesvt.channels import trace
        >>> from primesvt.calibration import calibration_of
        >>> net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(8, 2)
        >>> graph = trace(net, x)
        >>> inputs = calibration_of(x)
        >>> groups = graph.prunable()
        >>> seen = ActivationStatistics(model=net, graph=graph, groups=groups, calibration=inputs)
        >>> seen.moments("2").count
        8
    """

    model: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    calibration: CalibrationSet
    _products: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def wiring(self) -> ModuleGraph:
        """Which layers, norms and neurons feed which."""
        return trace_modules(self.model, next(iter(self.calibration)))

    @cached_property
    def readers(self) -> dict[str, tuple[Consumer, ...]]:
        """Group -> the layers that read it."""
        runs = set(self.wiring.order)  # others are read in training only
        return {
            g.name: tuple(r for r in readers_of(self.model, self.graph, g) if r.module in runs)
            for g in self.groups
        }

    def neurons(self, group: ChannelGroup) -> tuple[str, ...]:
        """Neurons whose channels are those of a group."""
        return self.wiring.neurons_of(group)

    def moments(self, reader: str) -> Moments:
        """Moments of the channels that enter a reader, by its module name."""
        return self._moments[reader]

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        found: dict[str, Moments] = {}

        def take(name: str, layer: nn.Module, args: tuple[Any, ...], _out: Any) -> None:
            rows = _rows(args[0], channel_axis(layer))
            found.setdefault(name, Moments(channels=rows.shape[1])).add(rows)

        with evaluating(self.model):
            self._run({r.module for readers in self.readers.values() for r in readers}, take)
        return found

    def inputs(self, reader: Consumer) -> Moments:
        """Moments of a reader's inputs, distinguished by kernel position where it has several."""
        return self._moments[reader.module] if reader.taps == 1 else self._patches[reader.module]

    @cached_property
    def _patches(self) -> dict[str, Moments]:
        found: dict[str, Moments] = {}

        def take(name: str, layer: nn.Module, args: tuple[Any, ...], _out: Any) -> None:
            assert isinstance(layer, nn.Conv2d)
            rows = patches(layer, args[0])
            found.setdefault(name, Moments(channels=rows.shape[1])).add(rows)

        readers = [reader for own in self.readers.values() for reader in own]
        with evaluating(self.model):
            self._run({reader.module for reader in readers if reader.taps > 1}, take)
        return found

    @cached_property
    def norms(self) -> tuple[Mapping[str, list[NormInput]], ...]:
        """For every batch: norm -> mean and variance of the input of each of its calls."""
        return seen_by(self.model, self.calibration)

    def rates(self, neuron: str) -> Tensor:
        """Mean output of every channel of a neuron, ``[C]``: its firing rate."""
        return self._spikes[neuron][0]

    def potentials(self, neuron: str) -> Tensor:
        """Mean absolute membrane potential of every channel of a neuron, ``[C]``.

        Of neurons without a potential (integer neurons) it is the mean absolute input.
        """
        return self._spikes[neuron][1]

    @cached_property
    def _spikes(self) -> dict[str, tuple[Tensor, Tensor]]:
        sums: dict[str, list[Any]] = {}

        def take(name: str, neuron: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            axis = self.wiring.axes[name]
            potential = getattr(neuron, "v_seq", None)
            given = potential if isinstance(potential, Tensor) else args[0]
            fired, absolute = _rows(out, axis), _rows(given.abs(), axis)
            entry = sums.setdefault(name, [0, 0.0, 0.0])
            entry[0] += len(fired)
            entry[1] = entry[1] + fired.double().sum(0).cpu()
            entry[2] = entry[2] + absolute.double().sum(0).cpu()

        names = {name for group in self.groups for name in self.neurons(group)}
        with evaluating(self.model), _storing_potentials(self.model, names):
            self._run(names, take)
        return {name: (fired / n, total / n) for name, (n, fired, total) in sums.items()}

    def products(self, group: ChannelGroup) -> Tensor:
        """Gram matrix of a group's channels in a product of spikes, ``[positions, size, size]``.

        Entry ``c, d`` is the sum over samples and time steps of the product, over the group's
        neurons, of the dot products of channels ``c`` and ``d`` over tokens. For q and k it is the
        Gram matrix of the channels' parts ``q_c k_c^T`` of the attention map.
        """
        if group.name in self._products:
            return self._products[group.name]
        names = self.neurons(group)
        total = torch.zeros(group.positions, group.size, group.size, dtype=torch.float64)
        grams: dict[str, Tensor] = {}

        def take(name: str, _neuron: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
            grams[name] = _gram(out, self.wiring.axes[name], group)
            if len(grams) == len(names):
                product = torch.stack(list(grams.values())).prod(0)
                total.add_(product.sum(0).cpu())
                grams.clear()

        with evaluating(self.model):
            self._run(set(names), take)
        self._products[group.name] = total / self.calibration.samples
        return self._products[group.name]

    def sensitivities(self, name: str) -> Tensor:
        """Mean absolute first-order effect on the loss of silencing a channel, ``[C]``.

        ``name`` is a reader or a neuron. The loss is the cross-entropy to the network's own
        prediction, so no labels are needed.
        """
        return self._sensitivities[name]

    @cached_property
    def _sensitivities(self) -> dict[str, Tensor]:
        axes = {
            r.module: channel_axis(r.layer(self.model))
            for readers in self.readers.values()
            for r in readers
        }
        axes |= {n: self.wiring.axes[n] for g in self.groups for n in self.neurons(g)}
        found: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}

        def take(name: str, layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            tensor = out if name in self.wiring.axes else args[0]
            if tensor.requires_grad:
                tensor.retain_grad()
                kept[name] = tensor

        with _differentiable(self.model), hooked(_hooks(self.model, axes, take)):
            for result in self.calibration.run(self.model):
                _loss(result).backward()
                for name, tensor in kept.items():
                    if tensor.grad is not None:
                        effect = _effects(tensor, tensor.grad, axes[name])
                        found[name] = found.get(name, torch.zeros_like(effect)) + effect
                kept.clear()
                self.model.zero_grad(set_to_none=True)
        return found

    def _run(self, names: set[str], take: Callable[..., None]) -> None:
        with hooked(_hooks(self.model, names, take)):
            for _ in self.calibration.run(self.model):
                pass


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients, those of frozen parameters too."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _hooks(
    model: nn.Module, names: Iterable[str], take: Callable[..., None]
) -> Iterator[RemovableHandle]:
    """Hooks that call ``take(name, module, args, output)`` after every call of some modules."""
    for name in names:
        yield model.get_submodule(name).register_forward_hook(partial(take, name))


@contextmanager
def _storing_potentials(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Let SpikingJelly's neurons store the potentials of all time steps, in a ``with`` block."""
    layers = [model.get_submodule(name) for name in names]
    storing = [layer for layer in layers if hasattr(layer, "store_v_seq")]
    before = [layer.store_v_seq for layer in storing]
    for layer in storing:
        layer.store_v_seq = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, flag in zip(storing, before, strict=True):
            layer.store_v_seq = flag


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """``[n, C]``: every sample, time step and position a row."""
    return tensor.detach().movedim(axis, -1).reshape(-1, tensor.shape[axis])


def _gram(out: Tensor, axis: int, group: ChannelGroup) -> Tensor:
    """Dot products of a neuron's channels over tokens, ``[T * B, positions, size, size]``.

    Tokens are the axes behind the channels, or the one before them where channels come last.
    """
    axis %= out.ndim
    spikes = out.detach()
    if axis == out.ndim - 1 and axis > 1:
        spikes, axis = spikes.transpose(-1, -2), axis - 1
    spikes = spikes.flatten(0, axis - 1) if axis > 1 else spikes
    heads = spikes.reshape(len(spikes), group.positions, group.size, -1).double()
    return heads @ heads.transpose(-1, -2)


def _effects(tensor: Tensor, gradient: Tensor, axis: int) -> Tensor:
    """|sum over positions of value x gradient| of every channel, summed over samples.

    Samples (and time steps) stand in front of the channels; where channels come last, positions
    are the axis before them.
    """
    axis %= tensor.ndim
    leading = axis if axis < tensor.ndim - 1 else max(1, tensor.ndim - 2)
    effect = (tensor.detach() * gradient).movedim(axis, -1)
    samples = effect.reshape(effect.shape[:leading].numel(), -1, effect.shape[-1])
    return samples.sum(1).abs().double().sum(0).cpu()


def _loss(result: Any) -> Tensor:
    logits = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
    if logits.ndim != 2:
        raise ValueError(
            f"importance 'taylor' needs logits [batch, classes], but the model gives "
            f"{list(logits.shape)}; choose another importance"
        )
    return functional.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")

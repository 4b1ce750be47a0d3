"""Find channels whose value never changes where they are read, and fold it into the readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from primesvt.calibration import CalibrationSet, Consumer, ModuleGraph, evaluating, readers_of
from primesvt.calibration.wiring import channel_axis
from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.graph import Ids, kept_mask
from primesvt.models.attention import PaddedBN
from primesvt.models.forward import batch_of, hooked
from primesvt.models.norms import is_norm

__all__ = [
    "ConstantChannels",
    "ValueRange",
    "all_readers",
    "find_constant_channels",
    "fold_constants",
    "levels_of",
    "norms_behind",
]


def fold_constants(
    model: nn.Module,
    graph: ChannelGraph,
    cuts: Iterable[ConstantChannels],
    *,
    readers: Mapping[str, tuple[Consumer, ...]],
    levels: ValueRange,
    wiring: ModuleGraph,
) -> None:
    """Fold the value of constant channels into biases or norms, in place, before they are cut.

    A reader ``y = W x + b`` in which channel ``c`` is always ``v`` becomes
    ``y = W' x' + (b + W_c v)``; without a bias the batch norm behind it takes it up:
    ``mean - W_c v``. Channels that are always 0 change nothing.
    """
    with torch.no_grad():
        for cut in cuts:
            stays = kept_mask(graph[cut.group], cut.kept).reshape(-1)
            for reader in readers[cut.group]:
                ids = reader.ids
                gone = torch.from_numpy(np.flatnonzero((ids >= 0) & ~stays[ids.clip(min=0)]))
                values = levels.low[reader.module].double()[gone]
                if bool((values != 0).any()):
                    _take_up(model, reader, gone, values, wiring)


def _take_up(
    model: nn.Module, reader: Consumer, gone: Tensor, values: Tensor, wiring: ModuleGraph
) -> None:
    """Add what constant inputs give a layer to its bias, or else to the norms behind it."""
    layer = reader.layer(model)
    weight = layer.weight.double().flatten(1)
    added = weight[:, gone.to(weight.device)] @ values.to(weight.device)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.double() + added)
        return
    for name in norms_behind(model, reader.module, wiring):
        norm = model.get_submodule(name)
        assert is_norm(norm)
        norm.running_mean.copy_(norm.running_mean.double() - added)


Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """Smallest and largest value of every input channel, ``[in]``, of each reader by name."""

    low: Mapping[str, Tensor]
    high: Mapping[str, Tensor]
    inputs: int

    def constant(self, reader: str) -> Flags:
        """True for input channels of one value, ``[in]``."""
        return np.asarray((self.low[reader] == self.high[reader]).numpy())

    def silent(self, reader: str) -> Flags:
        """True for input channels that are always 0, ``[in]``."""
        return np.asarray(((self.low[reader] == 0) & (self.high[reader] == 0)).numpy())


@dataclass(frozen=True, kw_only=True)
class ConstantChannels:
    """Channels that a group can lose without any change, as many at every front position.

    Attributes:
        group: the channel group.
        kept: the others, ``[positions, k]``, at least one.
        silent: how many of those that can go are always 0.
        constant: how many have another value.
    """

    group: str
    kept: Ids
    silent: int
    constant: int


def all_readers(
    model: nn.Module, graph: ChannelGraph, groups: Iterable[ChannelGroup]
) -> dict[str, tuple[Consumer, ...]]:
    """The layers that read each group, by its name; groups read by anything else are left out.

    Example:
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> graph = trace(net, torch.zeros(1, 4))
        >>> [reader.module for reader in all_readers(net, graph, graph.prunable())["0"]]
        ['2']
    """
    found = {group.name: (group, readers_of(model, graph, group)) for group in groups}
    return {
        name: readers
        for name, (group, readers) in found.items()
        if readers and len(readers) == len(group.readers)
    }


def levels_of(
    model: nn.Module, names: Iterable[str], sources: Iterable[CalibrationSet]
) -> ValueRange:
    """Smallest and largest value of every input channel of some layers, over all inputs.

    Example:
        >>> from primesvt.calibration import calibration_of
        >>> net = nn.Sequential(nn.Linear(2, 1))
        >>> levels_of(net, ["0"], [calibration_of(torch.eye(2))]).high
        {'0': tensor([1., 1.])}
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    inputs = 0

    def note(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        given = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        axis = channel_axis(layer)
        rows = given.detach().movedim(axis, -1).reshape(-1, given.shape[axis])
        least, most = (extreme.cpu() for extreme in torch.aminmax(rows, dim=0))
        low[name] = torch.minimum(low[name], least) if name in low else least
        high[name] = torch.maximum(high[name], most) if name in high else most

    def count(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal inputs
        inputs += batch_of(args)

    layers = (
        model.get_submodule(name).register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name in dict.fromkeys(names)
    )
    whole = (model.register_forward_pre_hook(count),)
    with hooked(chain(whole, layers)), evaluating(model):
        for source in sources:
            for _ in source.run(model):
                pass
    return ValueRange(low=low, high=high, inputs=inputs)


def find_constant_channels(
    model: nn.Module,
    group: ChannelGroup,
    readers: Iterable[Consumer],
    levels: ValueRange,
    wiring: ModuleGraph,
) -> ConstantChannels | None:
    """The silent and constant channels that a group can lose, or ``None`` where it has none.

    Silent ones can go wherever they are read; those of another value only where every reader can
    take it up. Of silent and constant ones the silent go first, then those of lower index.
    """
    size = group.positions * group.size
    silent, constant = np.ones(size, dtype=bool), np.ones(size, dtype=bool)
    for reader in readers:
        if reader.module not in levels.low:
            return None  # not called with these inputs
        present = reader.ids >= 0
        zero = levels.silent(reader.module)
        same = levels.constant(reader.module) if _takes_up(model, reader, wiring) else zero
        np.logical_and.at(silent, reader.ids[present], zero[present])
        np.logical_and.at(constant, reader.ids[present], same[present])
    ranks = np.where(silent, 0, np.where(constant, 1, 2)).reshape(group.positions, group.size)
    count = min(int((ranks < 2).sum(1).min()), group.size - 1)
    if count < 1:
        return None
    order = np.argsort(ranks, axis=1, kind="stable")
    gone = np.take_along_axis(ranks, order[:, :count], axis=1)
    return ConstantChannels(
        group=group.name,
        kept=np.sort(order[:, count:], axis=1).astype(np.int64),
        silent=int((gone == 0).sum()),
        constant=int((gone == 1).sum()),
    )


def _takes_up(model: nn.Module, reader: Consumer, wiring: ModuleGraph) -> bool:
    """Whether a bias, the reader's own or that of norms behind it, can replace a constant input.

    Never in front of a spatial kernel or of padding: there the border sees zeros instead.
    """
    layer = reader.layer(model)
    if reader.groups != 1 or prod(layer.weight.shape[2:]) != 1:
        return False
    padding = getattr(layer, "padding", 0)
    if not isinstance(padding, str) and np.any(padding):
        return False
    return layer.bias is not None or bool(norms_behind(model, reader.module, wiring))


def norms_behind(model: nn.Module, layer: str, wiring: ModuleGraph) -> tuple[str, ...]:
    """Batch norms behind a layer whose running means can take up a constant; often none.

    They must be all that reads the layer, and read nothing else. A norm whose statistics also make
    a padding cannot.
    """
    if not wiring.norm_after(layer):
        return ()
    names = wiring.feeds[layer]
    outputs = model.get_parameter(f"{layer}.weight").shape[0]
    fed = [name for readers in wiring.feeds.values() for name in readers]
    for name in names:
        norm, owner = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        if not is_norm(norm) or len(norm.running_mean) != outputs or isinstance(owner, PaddedBN):
            return ()
        if fed.count(name) != 1:
            return ()
    return names

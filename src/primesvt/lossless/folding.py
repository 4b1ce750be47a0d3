"""Constants that readers take up in their biases, or in the norms behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from primesvt.calibration import Reader, Wiring
from primesvt.calibration.wiring import NORMS
from primesvt.channels import ChannelGraph
from primesvt.pruning.lossless.constant_channels import Levels, Steady, norms_behind

__all__ = ["fold_constants"]


def fold_constants(
    model: nn.Module,
    graph: ChannelGraph,
    cuts: Iterable[Steady],
    *,
    readers: Mapping[str, tuple[Reader, ...]],
    levels: Levels,
    wiring: Wiring,
) -> None:
    """Let readers do without channels of one value, in place; the channels are cut afterwards.

    A reader ``y = W x + b`` in which channel ``c`` is always ``v`` becomes
    ``y = W' x' + (b + W_c v)``; without a bias the batch norm behind it takes it up:
    ``mean - W_c v``. Channels that are always 0 change nothing.
    """
    with torch.no_grad():
        for cut in cuts:
            for reader in readers[cut.group]:
                gone = _gone(graph, cut, reader)
                values = levels.low[reader.module].double()[gone]
                if bool((values != 0).any()):
                    _take_up(model, reader, gone, values, wiring)


def _gone(graph: ChannelGraph, cut: Steady, reader: Reader) -> Tensor:
    """Indices of a reader's inputs that go."""
    group = graph[cut.group]
    kept = np.zeros((group.positions, group.size), dtype=bool)
    np.put_along_axis(kept, cut.kept, True, axis=1)
    ids = reader.ids
    return torch.from_numpy(np.flatnonzero((ids >= 0) & ~kept.reshape(-1)[ids.clip(min=0)]))


def _take_up(
    model: nn.Module, reader: Reader, gone: Tensor, values: Tensor, wiring: Wiring
) -> None:
    layer = reader.layer(model)
    weight = layer.weight.double().flatten(1)
    added = weight[:, gone.to(weight.device)] @ values.to(weight.device)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.double() + added)
        return
    for name in norms_behind(model, reader.module, wiring):
        norm = model.get_submodule(name)
        assert isinstance(norm, NORMS) and norm.running_mean is not None
        norm.running_mean.copy_(norm.running_mean.double() - added)

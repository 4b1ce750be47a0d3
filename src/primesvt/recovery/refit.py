"""Least-squares refit: readers of removed channels make up for them from the channels that stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from primesvt.calibration import ActivationStatistics, Consumer
from primesvt.calibration.least_squares import regression
from primesvt.channels.graph import Ids

__all__ = ["refit"]


def refit(model: nn.Module, activity: ActivationStatistics, cuts: Mapping[str, Ids]) -> None:
    """Fold what removed channels gave into the weights of the channels that stay, in place.

    ``model`` still has all its channels: it is cut afterwards. Every removed input channel ``p`` of
    a reader is replaced by its best linear estimate ``sum_s B[p, s] x_s + c[p]`` from the surviving
    inputs, so ``W[:, s] += sum_p W[:, p] B[p, s]`` and ``b += sum_p W[:, p] c[p]``. This is the
    exact least-squares solution for linear layers and convolutions: the inputs of a larger kernel
    are channels at each of its places, on patches. Grouped and very wide ones get one mixing of
    channels for all places. A constant that neither a bias nor a batch norm
    behind the reader can take up is not used: the regression then goes through the origin.

    Args:
        model: a copy of the network that the activity was seen on.
        activity: moments in front of the readers.
        cuts: group -> kept channels ``[positions, k]``.
    """
    by_tensor: dict[str, tuple[Consumer, Tensor]] = {}
    for name, rows in cuts.items():
        for reader in activity.readers[name]:
            kept = _kept(activity, name, reader, rows)
            known = by_tensor.get(reader.tensor)
            by_tensor[reader.tensor] = (reader, kept if known is None else known[1] & kept)
    with torch.no_grad():
        for reader, kept in by_tensor.values():
            if not bool(kept.all()):
                _fold(model, activity, reader, kept)


def _kept(activity: ActivationStatistics, name: str, reader: Consumer, rows: Ids) -> Tensor:
    """True for every input channel of a reader that survives the cut of one group."""
    group = activity.graph[name]
    chosen = np.zeros((group.positions, group.size), dtype=bool)
    np.put_along_axis(chosen, rows, True, axis=1)
    ids = reader.ids
    return torch.from_numpy(np.where(ids < 0, True, chosen.reshape(-1)[ids.clip(min=0)]))


def _fold(model: nn.Module, activity: ActivationStatistics, reader: Consumer, mask: Tensor) -> None:
    layer, moments = reader.layer(model), activity.inputs(reader)
    seen = mask.repeat_interleave(reader.taps)
    kept, gone = seen.nonzero().flatten(), (~seen).nonzero().flatten()
    centred = layer.bias is not None or activity.wiring.norm_after(reader.module)
    second = moments.covariance if centred else moments.products / max(1, moments.count)
    mixing = regression(second, kept, gone, reader.groups)
    _mix(layer, reader, mixing, kept, gone)
    if layer.bias is not None:
        constant = torch.zeros(len(seen), dtype=torch.float64)
        constant[gone] = moments.mean[gone] - mixing @ moments.mean[kept]
        layer.bias += _per_output(layer, reader, constant).to(layer.bias)


def _mix(layer: nn.Module, reader: Consumer, mixing: Tensor, kept: Tensor, gone: Tensor) -> None:
    """``W[:, kept] += W[:, gone] @ mixing``, in every group of a grouped convolution apart."""
    assert isinstance(layer.weight, Tensor)
    weight = layer.weight.flatten(1) if reader.taps > 1 else layer.weight
    width, rows = weight.shape[1], weight.shape[0] // reader.groups
    updated = weight.clone()
    for number in range(reader.groups):
        inside = [(index // width == number).nonzero().flatten() for index in (kept, gone)]
        to, source = kept[inside[0]] - number * width, gone[inside[1]] - number * width
        block = updated[number * rows : (number + 1) * rows]
        part = mixing[inside[1]][:, inside[0]].to(weight.device)
        removed = block[:, source.to(weight.device)].double().reshape(rows, len(source), -1)
        update = torch.einsum("ops,pk->oks", removed, part).reshape(rows, len(to), *block.shape[2:])
        block[:, to.to(weight.device)] += update.to(weight.dtype)
    layer.weight.copy_(updated.reshape(layer.weight.shape))


def _per_output(layer: nn.Module, reader: Consumer, constant: Tensor) -> Tensor:
    """What constant inputs ``[in * taps]`` add to every output; of channels, inside the image."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    constant = constant.to(weight.device)
    if reader.taps > 1:
        return weight.double().flatten(1) @ constant
    blocks = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    inputs = constant.reshape(reader.groups, -1)
    return (blocks.reshape(reader.groups, -1, blocks.shape[1]) @ inputs[:, :, None]).flatten()

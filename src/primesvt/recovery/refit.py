"""Least-squares refit: readers of removed channels make up for them from the channels that stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from primesvt.calibration import ActivationStatistics, Consumer
from primesvt.calibration.least_squares import regression
from primesvt.channels.graph import Ids, kept_mask

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
        model: a copy of the network that the activity is of.
        activity: moments in front of the readers.
        cuts: group -> kept channels ``[positions, k]``.
    """
    by_tensor: dict[str, tuple[Consumer, Tensor]] = {}
    for name, rows in cuts.items():
        mask = kept_mask(activity.graph[name], rows).reshape(-1)
        for reader in activity.readers[name]:
            ids = reader.ids  # below 0: inputs of other groups, which stay
            kept = torch.from_numpy(np.where(ids < 0, True, mask[ids.clip(min=0)]))
            known = by_tensor.get(reader.tensor)
            by_tensor[reader.tensor] = (reader, kept if known is None else known[1] & kept)
    with torch.no_grad():
        for reader, kept in by_tensor.values():
            if not bool(kept.all()):
                _fold(model, activity, reader, kept)


def _fold(model: nn.Module, activity: ActivationStatistics, reader: Consumer, mask: Tensor) -> None:
    """Replace the inputs of one reader that go by their best estimate from those that stay."""
    layer, moments = reader.layer(model), activity.inputs(reader)
    stays = mask.repeat_interleave(reader.taps)
    kept, gone = stays.nonzero().flatten(), (~stays).nonzero().flatten()
    centred = layer.bias is not None or activity.wiring.norm_after(reader.module)
    second = moments.covariance if centred else moments.products / max(1, moments.count)
    mixing = regression(second, kept, gone, reader.groups)
    _mix(layer, reader, mixing, kept, gone)
    if layer.bias is not None:
        constant = torch.zeros(len(stays), dtype=torch.float64)
        constant[gone] = moments.mean[gone] - mixing @ moments.mean[kept]
        layer.bias += _per_output(layer, reader, constant).to(layer.bias)


def _mix(layer: nn.Module, reader: Consumer, mixing: Tensor, kept: Tensor, gone: Tensor) -> None:
    """Set ``W[:, kept] += W[:, gone] @ mixing``, in each group of a grouped convolution apart."""
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
    """The sum that constant inputs ``[in * taps]`` add to every output, away from the border."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    constant = constant.to(weight.device)
    if reader.taps > 1:
        return weight.double().flatten(1) @ constant
    blocks = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    inputs = constant.reshape(reader.groups, -1)
    return (blocks.reshape(reader.groups, -1, blocks.shape[1]) @ inputs[:, :, None]).flatten()

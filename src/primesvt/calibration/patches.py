"""What every output of a spatial convolution sees: patches of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LARGEST", "patches", "taps_of"]

LARGEST = 4096  # inputs of one output: their covariance takes 8 bytes times the square of it
ROWS = 2**14  # patches per call: neighbours hardly differ, so that more of them tell little
IMAGES = 128  # that they come from, over all samples and time steps


def taps_of(layer: nn.Module) -> int:
    """Places of a kernel whose inputs are told apart; 1 where channels are only taken as a whole.

    Those of two-dimensional convolutions without groups, padded by zeros.

    Example:
        >>> taps_of(nn.Conv2d(8, 8, 3, padding=1)), taps_of(nn.Conv2d(8, 8, 3, groups=8))
        (9, 1)
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or isinstance(layer.padding, str):
        return 1
    if layer.padding_mode != "zeros":
        return 1
    taps = layer.weight.shape[2:].numel()
    return taps if layer.in_channels * taps <= LARGEST else 1


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Rows ``[n, in * taps]`` from an input ``[..., C, H, W]``; of many some, spread evenly.

    Example:
        >>> patches(nn.Conv2d(2, 4, 3, padding=1), torch.ones(1, 2, 5, 5)).shape
        torch.Size([25, 18])
    """
    images = x.detach().flatten(0, -4) if x.ndim > 3 else x.detach()[None]
    count = min(len(images), IMAGES)
    chosen = torch.linspace(0, len(images) - 1, count).round().long().tolist()
    return torch.cat([_rows(layer, images[n, None], ROWS // count, n) for n in chosen])


def _rows(layer: nn.Conv2d, image: Tensor, most: int, start: int) -> Tensor:
    """Patches of one image, at most so many; ``start`` shifts which."""
    assert not isinstance(layer.padding, str)
    columns = functional.unfold(
        image, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )[0].T
    if len(columns) <= most:
        return columns
    places = torch.arange(most, device=image.device) * len(columns) // most
    return columns[(places + start) % len(columns)]

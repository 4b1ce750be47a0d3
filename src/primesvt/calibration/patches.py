"""What every output of a spatial convolution sees: patches of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LARGEST", "patches", "taps_of"]

LARGEST = 4096  # inputs of one output: their covariance takes 8 bytes times the square of it
ROWS = 2**14  # patches per call: neighbours hardly differ, so that more of them tell little


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
    """Rows ``[n, in * taps]`` from an input ``[N, C, H, W]``, spread over the images if too many.

    Example:
        >>> patches(nn.Conv2d(2, 4, 3, padding=1), torch.ones(1, 2, 5, 5)).shape
        torch.Size([25, 18])
    """
    assert not isinstance(layer.padding, str)
    x = x.detach()
    size = [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in zip(
            x.shape[-2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride,
            strict=True,
        )
    ]  # fmt: skip
    images = max(1, ROWS // max(1, size[0] * size[1]))
    if images < len(x):
        x = x[torch.linspace(0, len(x) - 1, images, device=x.device).round().long()]
    columns = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)

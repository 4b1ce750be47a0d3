"""The pooling of spiking stems without gradients: PyTorch's values, several times faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.models.fast_paths import exported, unwatched

__all__ = ["HalvingMaxPool"]


class HalvingMaxPool(nn.MaxPool2d):
    """Max pooling, 3x3, stride two, padded by one: ``[B, C, H, W]`` to half of both, rounded up.

    On a CPU, where no gradient is recorded, rows and then columns are compared as whole slices:
    a maximum rounds nothing, so the values are those of ``nn.MaxPool2d``. Images with channels
    last, which PyTorch pools quickly itself, are left to it, and so is whatever is watched.

    Example:
        >>> with torch.no_grad():
        ...     HalvingMaxPool()(torch.arange(16.0).view(1, 1, 4, 4)).tolist()
        [[[[5.0, 7.0], [13.0, 15.0]]]]
    """

    def __init__(self) -> None:
        super().__init__(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``x``; in the layout of PyTorch."""
        if _applies(x):
            return _halved(_halved(x, dim=2), dim=3)
        pooled: Tensor = super().forward(x)
        return pooled


def _applies(x: Tensor) -> bool:
    """Whether nothing can tell slices from PyTorch's own operator, and they pay."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.is_floating_point()
    images = x.ndim == 4 and x.is_contiguous() and x.numel() > 0
    return plain and images and unwatched() and not exported()


def _halved(x: Tensor, *, dim: int) -> Tensor:
    """Maxima of places ``2 i - 1``, ``2 i`` and ``2 i + 1`` along an axis, where they exist."""
    even = x[(slice(None),) * dim + (slice(0, None, 2),)]
    odd = x[(slice(None),) * dim + (slice(1, None, 2),)]
    out = even.clone(memory_format=torch.contiguous_format)
    for begin, those in ((0, odd), (1, odd.narrow(dim, 0, even.shape[dim] - 1))):
        part = out.narrow(dim, begin, those.shape[dim])
        torch.maximum(part, those, out=part)
    return out

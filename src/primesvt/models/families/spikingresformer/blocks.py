"""Layers of SpikingResformer around its attention; each maps ``[T, B, C, H, W]`` to the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN
from primesvt.models.fast_paths import HalvingMaxPool
from primesvt.models.neurons import Spike

__all__ = ["Downsampling", "GroupWiseFFN", "MeanHead", "Stem"]


class Stem(ConvBN):
    """First convolution; ``pool`` makes it a strided 7x7 one with max pooling, else it is 3x3.

    Example:
        >>> Stem(3, 8, pool=True)(torch.zeros(2, 1, 3, 16, 16)).shape
        torch.Size([2, 1, 8, 4, 4])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), prologue.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool) -> None:
        super().__init__(inputs, outputs, 7 if pool else 3, stride=2 if pool else 1)
        self.pool = HalvingMaxPool() if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        image = super().forward(x)
        return torch.unflatten(self.pool(image.flatten(0, 1)), 0, x.shape[:2])


class Downsampling(ConvBN):
    """Neuron, then a 3x3 convolution of stride 2 and batch normalisation.

    Example:
        >>> from primesvt.models import lif
        >>> Downsampling(4, 8, spike=lif)(torch.zeros(2, 1, 4, 6, 6)).shape
        torch.Size([2, 1, 8, 3, 3])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), downsampling layer.
    """

    def __init__(self, inputs: int, outputs: int, *, spike: Spike) -> None:
        super().__init__(inputs, outputs, 3, stride=2)
        self.lif = spike()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.lif(x))


class GroupWiseFFN(nn.Module):
    """Feed-forward network with a 3x3 convolution in groups inside; both have shortcuts.

    ``[T, B, C, H, W]`` to the same shape; every layer spikes its input.

    Example:
        >>> from primesvt.models import lif
        >>> GroupWiseFFN(4, 16, groups=2, spike=lif)(torch.zeros(2, 1, 4, 6, 6)).shape
        torch.Size([2, 1, 4, 6, 6])

    Source: Shi et al., "SpikingResformer" (arXiv 2403.14302), group-wise spiking feed-forward
    network; github.com/xyshi2000/SpikingResformer, models/spikingresformer.py.
    """

    def __init__(self, dim: int, hidden: int, *, groups: int, spike: Spike) -> None:
        super().__init__()
        self.lif1 = spike()
        self.fc1 = ConvBN(dim, hidden)
        self.lif2 = spike()
        self.conv = ConvBN(hidden, hidden, 3, groups=groups)
        self.lif3 = spike()
        self.fc2 = ConvBN(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.fc1(self.lif1(x))
        wide = wide + self.conv(self.lif2(wide))
        branch: Tensor = self.fc2(self.lif3(wide))
        return x + branch


class MeanHead(nn.Module):
    """Classifier without bias on the spatial mean: ``[T, B, C, H, W]`` to ``[T, B, classes]``.

    Example:
        >>> MeanHead(8, 10)(torch.zeros(2, 1, 8, 3, 3)).shape
        torch.Size([2, 1, 10])
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(dim, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x.flatten(0, 1)).flatten(1)
        logits: Tensor = self.fc(torch.unflatten(pooled, 0, x.shape[:2]))
        return logits

"""Blocks of SDT-V3; each maps ``[T, B, C, H, W]`` to the same shape."""

from __future__ import annotations

from torch import Tensor, nn

from primesvt.models.blocks import ConvBN, TransformerBlock
from primesvt.models.neurons import Spike

__all__ = ["ConvBlock", "EfficientBlock", "SepConv", "SepConvBlock"]


class SepConv(nn.Module):
    """Separable convolution with a neuron in front, and a norm behind, each of its three layers.

    Example:
        >>> import torch
        >>> from primesvt.models.neurons import integer
        >>> SepConv(4, 8, 3, spike=integer)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), E-SpikeFormer;
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    def __init__(self, dim: int, hidden: int, kernel: int, *, spike: Spike) -> None:
        super().__init__()
        self.lif1 = spike()
        self.pw1 = ConvBN(dim, hidden)
        self.lif2 = spike()
        self.dw = ConvBN(hidden, hidden, kernel, groups=hidden)
        self.lif3 = spike()
        self.pw2 = ConvBN(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.pw1(self.lif1(x))
        mixed = self.dw(self.lif2(expanded))
        projected: Tensor = self.pw2(self.lif3(mixed))
        return projected


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each behind a neuron, added to the stream.

    Example:
        >>> import torch
        >>> from primesvt.models.neurons import integer
        >>> ConvBlock(4, 16, spike=integer)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), E-SpikeFormer;
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, dim: int, hidden: int, *, spike: Spike, bias: bool = False) -> None:
        super().__init__()
        self.lif1 = spike()
        self.conv1 = ConvBN(dim, hidden, 3, bias=bias)
        self.lif2 = spike()
        self.conv2 = ConvBN(hidden, dim, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv2(self.lif2(self.conv1(self.lif1(x))))
        return x + branch


class SepConvBlock(ConvBlock):
    """A separable 7x7 convolution, then the two 3x3 ones, each branch added to the stream.

    Example:
        >>> import torch
        >>> from primesvt.models.neurons import integer
        >>> SepConvBlock(4, 16, sep_hidden=8, spike=integer)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    def __init__(self, dim: int, hidden: int, *, sep_hidden: int, spike: Spike) -> None:
        super().__init__(dim, hidden, spike=spike)
        self.sep = SepConv(dim, sep_hidden, 7, spike=spike)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.sep(x))


class EfficientBlock(TransformerBlock):
    """A separable 3x3 convolution, attention and an MLP, each added to the stream.

    Example:
        >>> import torch
        >>> EfficientBlock(*(nn.Identity() for _ in range(3)))(torch.ones(1, 1, 1, 1, 1)).item()
        8.0

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061), E-SpikeFormer;
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Base/models.py.
    """

    def __init__(self, sep: nn.Module, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__(attn, mlp)
        self.sep = sep

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.sep(x))

"""Building blocks shared by the families; each maps ``[T, B, C, ...]`` to ``[T, B, C', ...]``.

No forward knows a width: sizes come from tensors, head counts and scales from the config.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.models.neurons import lif

__all__ = ["MLP", "ConvBN", "ConvBlock", "Downsample", "SepConv", "TransformerBlock"]

_LAYERS: dict[int, tuple[type[nn.Conv1d | nn.Conv2d], type[nn.BatchNorm1d | nn.BatchNorm2d]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
}


class ConvBN(nn.Module):
    """Convolution and batch normalisation over merged time and batch.

    ``[T, B, C, *space]`` to ``[T, B, C', *space']`` with ``dims`` spatial axes, padded by half the
    kernel.

    Example:
        >>> ConvBN(3, 8, 3, stride=2)(torch.zeros(2, 1, 3, 6, 6)).shape
        torch.Size([2, 1, 8, 3, 3])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        bias: bool = False,
        dims: int = 2,
    ) -> None:
        super().__init__()
        conv, norm = _LAYERS[dims]
        self.conv = conv(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.bn(self.conv(x.flatten(0, 1)))
        return torch.unflatten(merged, 0, x.shape[:2])


class Downsample(ConvBN):
    """Convolution that changes resolution and width; all but the first spike their input.

    Example:
        >>> Downsample(3, 8, 7, stride=2, spiking=False)(torch.zeros(1, 1, 3, 8, 8)).shape
        torch.Size([1, 1, 8, 4, 4])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), downsampling.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, stride: int, spiking: bool = True
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, bias=True)
        self.lif = lif() if spiking else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.lif(x))


class SepConv(nn.Module):
    """Spike-driven separable convolution: 1x1 expansion, depthwise, 1x1 projection.

    Example:
        >>> SepConv(4, 8)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), separable convolution.
    """

    def __init__(self, dim: int, hidden: int, kernel: int = 7) -> None:
        super().__init__()
        self.lif1 = lif()
        self.pw1 = ConvBN(dim, hidden)
        self.lif2 = lif()
        self.dw = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False)
        self.pw2 = ConvBN(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.lif2(self.pw1(self.lif1(x)))
        mixed: Tensor = self.dw(spikes.flatten(0, 1))
        projected: Tensor = self.pw2(torch.unflatten(mixed, 0, x.shape[:2]))
        return projected


class ConvBlock(nn.Module):
    """Convolutional block with membrane shortcuts: separable convolution, then two 3x3 ones.

    Example:
        >>> ConvBlock(4, sep_hidden=8, hidden=16)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), Conv-based SNN block.
    """

    def __init__(self, dim: int, *, sep_hidden: int, hidden: int) -> None:
        super().__init__()
        self.sep = SepConv(dim, sep_hidden)
        self.lif1 = lif()
        self.conv1 = ConvBN(dim, hidden, 3)
        self.lif2 = lif()
        self.conv2 = ConvBN(hidden, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sep(x)
        branch: Tensor = self.conv2(self.lif2(self.conv1(self.lif1(x))))
        return x + branch


class MLP(nn.Module):
    """Two pre-activated channel layers over tokens: ``[T, B, C, H, W]`` to the same shape.

    Example:
        >>> MLP(4, 16)(torch.zeros(1, 1, 4, 3, 3)).shape
        torch.Size([1, 1, 4, 3, 3])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), channel MLP.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lif1 = lif()
        self.fc1 = ConvBN(dim, hidden, bias=True, dims=1)
        self.lif2 = lif()
        self.fc2 = ConvBN(hidden, dim, bias=True, dims=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.fc2(self.lif2(self.fc1(self.lif1(x.flatten(-2)))))
        return torch.unflatten(tokens, -1, x.shape[-2:])


class TransformerBlock(nn.Module):
    """A token mixer and an MLP, each added to the membrane-potential stream.

    Example:
        >>> TransformerBlock(SepConv(8, 8), MLP(8, 32))(torch.zeros(1, 1, 8, 2, 2)).shape
        torch.Size([1, 1, 8, 2, 2])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), Transformer-based SNN block.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        branch: Tensor = self.mlp(x)
        return x + branch

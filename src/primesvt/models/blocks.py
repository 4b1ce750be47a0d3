"""Building blocks shared by the families; each maps ``[T, B, C, ...]`` to ``[T, B, C', ...]``.

No forward knows a width: sizes come from tensors, head counts and scales from the config.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from primesvt.models.fast_paths import HalvingMaxPool, unwatched
from primesvt.models.neurons import Spike, lif

__all__ = [
    "MLP",
    "ConvBN",
    "ConvBlock",
    "Downsample",
    "MaxPool",
    "SepConv",
    "SpikeMLP",
    "TransformerBlock",
]

_LAYERS: dict[int, tuple[type[nn.Conv1d | nn.Conv2d], type[nn.BatchNorm1d | nn.BatchNorm2d]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
}


def _distinct(layer: nn.Module, x: Tensor) -> Tensor:
    """The first time step alone where all are one image: in front of the first neuron.

    Hooks inside the layer see every time step, as they do with gradients.
    """
    if x.stride(0) != 0 or len(x) < 2 or not unwatched():
        return x
    watched = any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    return x if watched else x[:1]


def _repeated(out: Tensor, steps: int) -> Tensor:
    """All time steps again, without a copy."""
    return out if len(out) == steps else out.expand(steps, *out.shape[1:])


class ConvBN(nn.Module):
    """Convolution and batch normalisation over merged time and batch.

    ``[T, B, C, H, W]`` to ``[T, B, C', H', W']``, padded by half the kernel unless ``padding`` is
    given. ``dims=1`` takes the tokens of the image in a row, as some official layers do: same
    values, weights of one axis less.

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
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        dims: int = 2,
    ) -> None:
        super().__init__()
        conv, norm = _LAYERS[dims]
        border = kernel // 2 if padding is None else padding
        self.conv = conv(inputs, outputs, kernel, stride, border, groups=groups, bias=bias)
        self.bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        steps = x if self.bn.training else _distinct(self, x)
        merged = steps.flatten(0, 1)
        if isinstance(self.conv, nn.Conv1d):
            tokens = self.bn(self.conv(merged.flatten(2)))
            out = torch.unflatten(torch.unflatten(tokens, -1, x.shape[-2:]), 0, steps.shape[:2])
        else:
            out = torch.unflatten(self.bn(self.conv(merged)), 0, steps.shape[:2])
        return _repeated(out, len(x))


class MaxPool(HalvingMaxPool):
    """The pooling of spiking stems, 3x3 with stride two, over merged time and batch.

    ``[T, B, C, H, W]`` to ``[T, B, C, H / 2, W / 2]``, rounded up.

    Example:
        >>> MaxPool()(torch.zeros(2, 1, 3, 6, 5)).shape
        torch.Size([2, 1, 3, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        steps = _distinct(self, x)
        out = torch.unflatten(super().forward(steps.flatten(0, 1)), 0, steps.shape[:2])
        return _repeated(out, len(x))


class Downsample(ConvBN):
    """Convolution that changes resolution and width; all but the first spike their input.

    Example:
        >>> Downsample(3, 8, 7, stride=2, spiking=False)(torch.zeros(1, 1, 3, 8, 8)).shape
        torch.Size([1, 1, 8, 4, 4])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), downsampling.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int,
        spiking: bool = True,
        spike: Spike = lif,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, bias=True)
        self.lif = spike() if spiking else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.lif(x))


class SepConv(nn.Module):
    """Spike-driven separable convolution: 1x1 expansion, depthwise, 1x1 projection.

    Example:
        >>> SepConv(4, 8)(torch.zeros(1, 1, 4, 5, 5)).shape
        torch.Size([1, 1, 4, 5, 5])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), separable convolution.
    """

    def __init__(self, dim: int, hidden: int, kernel: int = 7, *, spike: Spike = lif) -> None:
        super().__init__()
        self.lif1 = spike()
        self.pw1 = ConvBN(dim, hidden)
        self.lif2 = spike()
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

    def __init__(self, dim: int, *, sep_hidden: int, hidden: int, spike: Spike = lif) -> None:
        super().__init__()
        self.sep = SepConv(dim, sep_hidden, spike=spike)
        self.lif1 = spike()
        self.conv1 = ConvBN(dim, hidden, 3)
        self.lif2 = spike()
        self.conv2 = ConvBN(hidden, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sep(x)
        branch: Tensor = self.conv2(self.lif2(self.conv1(self.lif1(x))))
        return x + branch


class MLP(nn.Module):
    """Channel layers with a neuron *before* each, for a stream of membrane potentials.

    ``[T, B, C, H, W]`` to the same shape.

    Example:
        >>> MLP(4, 16)(torch.zeros(1, 1, 4, 3, 3)).shape
        torch.Size([1, 1, 4, 3, 3])

    Source: Spike-driven Transformer V2 (arXiv 2404.03663), channel MLP.
    """

    def __init__(self, dim: int, hidden: int, *, spike: Spike = lif, dims: int = 1) -> None:
        super().__init__()
        self.lif1 = spike()
        self.fc1 = ConvBN(dim, hidden, bias=True, dims=dims)
        self.lif2 = spike()
        self.fc2 = ConvBN(hidden, dim, bias=True, dims=dims)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.lif2(self.fc1(self.lif1(x))))
        return out


class SpikeMLP(nn.Module):
    """Channel layers with a neuron *after* each, for a stream of summed spikes (SEW).

    ``[T, B, C, H, W]`` to the same shape. ``projection(inputs, outputs)`` makes other layers than
    convolutions of ``dims`` axes.

    Example:
        >>> SpikeMLP(4, 16)(torch.zeros(1, 1, 4, 3, 3)).shape
        torch.Size([1, 1, 4, 3, 3])

    Source: Zhou et al., "Spikformer" (arXiv 2209.15425), MLP block.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        spike: Spike = lif,
        dims: int = 2,
        projection: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layer = projection or partial(ConvBN, bias=True, dims=dims)
        self.fc1 = layer(dim, hidden)
        self.lif1 = spike()
        self.fc2 = layer(hidden, dim)
        self.lif2 = spike()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return out


class TransformerBlock(nn.Module):
    """A token mixer and an MLP, each added to the residual stream.

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

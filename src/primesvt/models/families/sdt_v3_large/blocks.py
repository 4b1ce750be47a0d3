"""Blocks of the large SDT-V3; each maps ``[T, B, C, ...]`` to ``[T, B, C', ...]``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.models.blocks import ConvBN
from primesvt.models.neurons import Spike

__all__ = ["DropPath", "NormedRepConv", "RepConv", "ScaledBlock", "SplitHead"]


class RepConv(nn.Module):
    """Two channel layers with a norm behind each and no neuron between.

    ``[T, B, C, H, W]`` to ``[T, B, C', H, W]``.

    Example:
        >>> RepConv(4, 6, hidden=5)(torch.zeros(2, 1, 4, 3, 3)).shape
        torch.Size([2, 1, 6, 3, 3])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061);
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int) -> None:
        super().__init__()
        self.inner = ConvBN(inputs, hidden, dims=1)
        self.outer = ConvBN(hidden, outputs, dims=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(self.inner(x))
        return out


class NormedRepConv(RepConv):
    """A ``RepConv`` and one more norm: what makes q, k and v, and stands behind the attention.

    ``[T, B, C, H, W]`` to ``[T, B, C', H, W]``.

    Example:
        >>> NormedRepConv(4, 6, hidden=5)(torch.zeros(2, 1, 4, 3, 3)).shape
        torch.Size([2, 1, 6, 3, 3])

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int) -> None:
        super().__init__(inputs, outputs, hidden=hidden)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        merged = super().forward(x).flatten(0, 1)
        return torch.unflatten(self.bn(merged), 0, x.shape[:2])


class DropPath(nn.Module):
    """Stochastic depth, in training only: one decision per time step for the whole batch.

    ``[T, B, C, H, W]`` to the same shape, zero with probability ``rate``, else enlarged so that
    the mean stays.

    Example:
        >>> sorted(set(DropPath(0.5)(torch.ones(100, 1, 1, 1, 1)).flatten().tolist()))
        [0.0, 2.0]

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        stays = x.new_empty(x.shape[0], 1, 1, 1, 1).bernoulli_(1 - self.rate)
        return x * (stays / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"rate={self.rate:g}"


class ScaledBlock(nn.Module):
    """Attention and an MLP, each scaled per channel and added to the stream.

    ``[T, B, C, H, W]`` to the same shape.

    Args:
        dim: channels of the stream.
        attn: the attention.
        mlp: the MLP.
        drop_path: how often a branch is left out in training.
        rep: a branch in front of the attention, on spikes of its own, neither scaled nor left out.
        unused: layers that stand in the state dict and that the forward never touches.
        spike: makes the neuron in front of ``rep``.

    Example:
        >>> from primesvt.models.neurons import integer
        >>> block = ScaledBlock(8, nn.Identity(), nn.Identity(), spike=integer)
        >>> block(torch.zeros(1, 1, 8, 2, 2)).shape
        torch.Size([1, 1, 8, 2, 2])

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        spike: Spike,
        drop_path: float = 0.0,
        rep: RepConv | None = None,
        unused: RepConv | None = None,
    ) -> None:
        super().__init__()
        self.rep_lif = spike() if rep else None
        self.rep = rep
        self.unused = nn.ModuleDict({"rep": unused} if unused else {})
        self.attn = attn
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)
        self.layer_scale1 = nn.Parameter(torch.full((dim,), 1e-6))
        self.layer_scale2 = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        if self.rep is not None and self.rep_lif is not None:
            x = x + self.rep(self.rep_lif(x))
        x = x + self.drop_path(self.attn(x) * self.layer_scale1.view(-1, 1, 1))
        branch: Tensor = self.drop_path(self.mlp(x) * self.layer_scale2.view(-1, 1, 1))
        return x + branch


class SplitHead(nn.Module):
    """Classifier on the spatial mean as it is, and a distilled one on the spikes of that mean.

    ``[T, B, C, H, W]`` to ``[T, B, classes]``; with ``distillation`` evaluation averages the two
    classifiers, and training returns both.

    Example:
        >>> from primesvt.models.neurons import integer
        >>> head = SplitHead(8, 10, distillation=True, spike=integer).eval()
        >>> head(torch.ones(2, 1, 8, 3, 3)).shape
        torch.Size([2, 1, 10])

    Source: github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, dim: int, classes: int, *, distillation: bool, spike: Spike) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes)
        self.lif = spike()
        self.fc_kd = nn.Linear(dim, classes) if distillation else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pooled = x.flatten(3).mean(-1)
        # The official forward spikes without distillation too, where nothing reads it.
        spikes = self.lif(pooled)
        logits: Tensor = self.fc(pooled)
        if self.fc_kd is None:
            return logits
        distilled: Tensor = self.fc_kd(spikes)
        return (logits, distilled) if self.training else (logits + distilled) / 2

"""Spike-driven Transformer V3, large sizes: config and model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from primesvt.models.attention import SpikingSelfAttention
from primesvt.models.blocks import MLP, ConvBN
from primesvt.models.families._staged import StagedConfig, scaled, stages
from primesvt.models.families.sdt_v3 import ConvBlock
from primesvt.models.neurons import Spike, integer
from primesvt.models.spiking_vit import SpikingViT

__all__ = [
    "DropPath",
    "NormedRepConv",
    "RepConv",
    "SDTv3LargeConfig",
    "ScaledBlock",
    "SplitHead",
    "build",
]


class RepConv(nn.Module):
    """Two channel layers with a norm behind each and no neuron between.

    ``[T, B, C, H, W]`` to ``[T, B, C', H, W]``. ``models.strip.merge_chain`` makes one layer of
    them: ``inner`` does nothing then.

    Example:
        >>> RepConv(4, 6, hidden=5)(torch.zeros(2, 1, 4, 3, 3)).shape
        torch.Size([2, 1, 6, 3, 3])

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061);
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int) -> None:
        super().__init__()
        self.inner: nn.Module = ConvBN(inputs, hidden, dims=1)
        self.outer = ConvBN(hidden, outputs, dims=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(self.inner(x))
        return out


class NormedRepConv(RepConv):
    """A ``RepConv`` and one more norm, as used for q, k, v and the projection of the attention.

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


@dataclass(frozen=True, kw_only=True)
class SDTv3LargeConfig(StagedConfig):
    """Sizes of an SDT-V3 of the large kind; the defaults are those of the larger one.

    ``inner_ratio`` gives the hidden width of the layers that make q, k and v and follow the
    attention, ``rep_ratio`` that of the branch which the official ``choice="base"`` has in front
    of the attention (``None``: no such branch). Where the norm in that branch has another length,
    ``rep_norm_ratio``, no forward can run it: its tensors are kept unused. ``drop_path`` is the
    rate of stochastic depth in the last block; it rises evenly from zero in the first. Neurons
    round exact halves up.

    Example:
        >>> SDTv3LargeConfig(embed_dims=(8, 16, 32), depths=(2,), num_heads=4).attn_scale
        0.125

    Source: Yao et al., "Scaling Spike-driven Transformer ..." (arXiv 2411.16061);
    github.com/BICLab/Spike-Driven-Transformer-V3, Model_Large/spikformer.py.
    """

    family: ClassVar[str] = "sdt_v3_large"
    transformer_stages: ClassVar[int] = 1

    embed_dims: tuple[int, ...] = (196, 384, 768)
    v_ratio: float = 1
    depths: tuple[int, ...] = (12,)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    inner_ratio: float = 1.5
    rep_ratio: float | None = None
    rep_norm_ratio: float | None = None
    distillation: bool = False
    attn_scale: float = 0.125
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ratios("inner_ratio")
        self.check_ratios(*(n for n in ("rep_ratio", "rep_norm_ratio") if getattr(self, n)))
        if self.rep_norm_ratio is not None and self.rep_ratio is None:
            raise ValueError(
                f"rep_norm_ratio is {self.rep_norm_ratio!r} without a branch that has this norm;"
                " give rep_ratio too, or leave both at None"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path!r}, but a rate is in [0, 1)")

    @property
    def rep_runs(self) -> bool:
        """Whether the branch in front of the attention exists and can be computed."""
        return self.rep_ratio is not None and self.rep_norm_ratio in (None, self.rep_ratio)


def build(config: SDTv3LargeConfig) -> SpikingViT:
    """Build the model of a config, with fresh weights.

    Example:
        >>> model = build(SDTv3LargeConfig(embed_dims=(8, 8, 16), num_heads=4, depths=(1,)))
        >>> [name for name, _ in model.blocks.named_children()][-2:]
        ['down3', 'block3_0']
    """
    spike = partial(integer, levels=config.spike_levels, rounding="up")
    head = SplitHead(
        config.embed_dims[-1],
        config.num_classes,
        distillation=config.distillation,
        spike=partial(spike, norm=1),
    )
    rates = iter(torch.linspace(0, config.drop_path, config.depths[0], device="cpu").tolist())

    def block(stage: int, width: int) -> nn.Module:
        if stage < 3:
            return ConvBlock(width, scaled(width, config.conv_ratio), spike=spike, bias=True)

        def projection(inputs: int, outputs: int) -> nn.Module:
            return NormedRepConv(inputs, outputs, hidden=scaled(inputs, config.inner_ratio))

        attention = SpikingSelfAttention(
            width,
            heads=config.num_heads,
            scale=config.attn_scale,
            threshold=1.0,
            projection=projection,
            spike=spike,
            v_dim=scaled(width, config.v_ratio),
        )
        return ScaledBlock(
            width,
            attention,
            MLP(width, scaled(width, config.mlp_ratio), spike=spike),
            spike=spike,
            drop_path=next(rates),
            rep=_rep(config, width) if config.rep_runs else None,
            unused=None if config.rep_runs else _rep(config, width),
        )

    return SpikingViT(config, stages(config, spike, block), head)


def _rep(config: SDTv3LargeConfig, width: int) -> RepConv | None:
    if config.rep_ratio is None:
        return None
    rep = RepConv(width, width, hidden=scaled(width, config.rep_ratio))
    if config.rep_norm_ratio is not None:
        rep.inner.bn = nn.BatchNorm1d(scaled(width, config.rep_norm_ratio))
    return rep

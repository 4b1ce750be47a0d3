"""Spiking transformers with widths written into their forwards, as public code has them.

Shapes and sizes are those of Spikformer, SDT-V1, QKFormer, Max-Former, SGLFormer and the dual
attention of SpikingResformer; the text is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

T, DIM, HEADS = 2, 16, 4


def lif() -> nn.Module:
    return neuron.LIFNode(step_mode="m", detach_reset=True)


class Tokens(nn.Module):
    """Linear over tokens and batch norm; its width is an attribute."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.lin, self.bn = nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside)
        self.width = outside

    def forward(self, x: Tensor) -> Tensor:
        t, b, n, _ = x.shape
        y = self.bn(self.lin(x).flatten(0, 1).transpose(-1, -2)).transpose(-1, -2)
        return y.reshape(t, b, n, self.width)


class Pixels(nn.Module):
    """A convolution and batch norm over ``[T, B, C, H, W]``; the width comes from its input."""

    def __init__(self, inside: int, outside: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, 1, kernel // 2, groups=groups, bias=False)
        self.bn, self.factor = nn.BatchNorm2d(outside), outside // inside

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        y = self.bn(self.conv(x.flatten(0, 1)))
        return (
            y.reshape(t, b, int(c * self.factor), h, w) if self.factor else y.unflatten(0, (t, b))
        )


class SelfAttention(nn.Module):
    """Head widths from the width of the input, scale from the width of the queries."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Tokens(dim, dim) for _ in range(4))
        self.q_lif, self.k_lif, self.v_lif, self.a_lif, self.p_lif = (lif() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        t, b, n, c = x.shape
        q = self.q_lif(self.q(x)).reshape(t, b, n, self.heads, c // self.heads).transpose(2, 3)
        k = self.k_lif(self.k(x)).reshape(t, b, n, self.heads, c // self.heads).transpose(2, 3)
        v = self.v_lif(self.v(x)).reshape(t, b, n, self.heads, c // self.heads).transpose(2, 3)
        y = (q @ k.transpose(-2, -1)) @ v * q.shape[-1] ** -0.5
        y = y.transpose(2, 3).reshape(t, b, n, c).contiguous()
        return self.p_lif(self.proj(self.a_lif(y)))


class Patterns(SelfAttention):
    """The same attention in the patterns of einops, which are given the width of a head."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__(dim, heads)
        self.width = dim // heads
        self.divide = Rearrange("t b n (h d) -> t b h d n", d=dim // heads)

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.heads, self.width
        q = rearrange(self.q_lif(self.q(x)), "t b n (h d) -> t b h n d", h=heads, d=width)
        k = self.divide(self.k_lif(self.k(x)))
        v = rearrange(self.v_lif(self.v(x)), "... n (h d) -> ... h n d", d=x.shape[-1] // heads)
        ones = repeat(torch.ones(width, dtype=x.dtype), "d -> h 1 d", h=heads, d=width)
        y = (q @ k) @ (v * ones)
        y = reduce(y, "t b h n (d r) -> t b n (h d)", "sum", d=width, r=1)
        return self.p_lif(self.proj(self.a_lif(y)))


class Hidden(nn.Module):
    """An MLP whose hidden width is an attribute, and a float times the width of the input."""

    def __init__(self, dim: int = DIM, ratio: float = 2.0) -> None:
        super().__init__()
        self.c_hidden, self.ratio = int(dim * ratio), ratio
        self.fc1, self.fc2 = Tokens(dim, self.c_hidden), Tokens(self.c_hidden, dim)
        self.lif1, self.lif2 = lif(), lif()

    def forward(self, x: Tensor) -> Tensor:
        t, b, n, c = x.shape
        y = self.lif1(self.fc1(x)).reshape(t * b, n, self.c_hidden)
        return self.lif2(self.fc2(y.view(t, b, n, int(self.ratio * c))))


class DrivenAttention(nn.Module):
    """Spike-driven attention over pixels: keys times values, summed over tokens."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.q, self.k, self.v, self.proj = (Pixels(dim, dim) for _ in range(4))
        self.q_lif, self.k_lif, self.v_lif, self.talk = (lif() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        n = h * w

        def heads(y: Tensor) -> Tensor:
            y = y.flatten(3).transpose(-1, -2)
            return y.reshape(t, b, n, self.heads, c // self.heads).permute(0, 1, 3, 2, 4)

        q, k, v = (
            heads(f(g(x)))
            for f, g in ((self.q_lif, self.q), (self.k_lif, self.k), (self.v_lif, self.v))
        )
        kv = self.talk(k.mul(v).sum(dim=-2, keepdim=True))
        y = q.mul(kv).transpose(3, 4).reshape(t, b, self.dim, h, w)
        return self.proj(y)


class TokenAttention(nn.Module):
    """Token attention: queries summed over the channels of a head gate the keys."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.proj = (Pixels(dim, dim) for _ in range(3))
        self.q_lif, self.k_lif, self.a_lif = (lif() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        q = self.q_lif(self.q(x)).view(t, b, self.heads, c // self.heads, h * w)
        k = self.k_lif(self.k(x)).view(t, b, self.heads, c // self.heads, h * w)
        gate = self.a_lif(q.sum(dim=3, keepdim=True))
        return self.proj((gate * k).reshape(t, b, c, h, w))


class Mixing(nn.Module):
    """A depthwise convolution between pointwise ones, with a wider middle."""

    def __init__(self, dim: int = DIM, expand: int = 2) -> None:
        super().__init__()
        self.med = dim * expand
        self.pw1 = Pixels(dim, self.med)
        self.dw, self.pw2 = Pixels(self.med, self.med, 3, self.med), Pixels(self.med, dim)
        self.lif1, self.lif2 = lif(), lif()

    def forward(self, x: Tensor) -> Tensor:
        t, b, _, h, w = x.shape
        y = self.lif2(self.pw1(self.lif1(x)))
        return self.pw2(self.dw(y.reshape(t, b, self.med, h, w)))


class Windows(nn.Module):
    """Attention inside of windows: samples, windows and channels share axes."""

    def __init__(self, dim: int = DIM, heads: int = HEADS, side: int = 2) -> None:
        super().__init__()
        self.attn, self.side, self.dim = SelfAttention(dim, heads), side, dim

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        s = self.side
        y = x.reshape(t, b, c, h // s, s, w // s, s).permute(0, 1, 3, 5, 4, 6, 2)
        y = self.attn(y.reshape(t, -1, s * s, c))
        y = y.view(t, b, h // s, w // s, s, s, self.dim).permute(0, 1, 6, 2, 4, 3, 5)
        return y.reshape(t, b, c, h, w)


class DualAttention(nn.Module):
    """Two halves of one projection; the -1 would take in what a cut removes."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.kv, self.proj = Pixels(dim, 2 * dim), Pixels(dim, dim)
        self.kv_lif, self.a_lif, self.o_lif = lif(), lif(), lif()

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        y = self.kv_lif(self.kv(x)).reshape(t, b, self.heads, 2 * c // self.heads, -1)
        one, two = y[:, :, :, : c // self.heads], y[:, :, :, c // self.heads :]
        a = self.a_lif(one.transpose(-1, -2) @ x.reshape(t, b, self.heads, c // self.heads, -1))
        y = self.o_lif((two @ a).reshape(t, b, c, h, w))
        return self.proj(y)


class Net(nn.Module):
    """A stem, residual blocks over tokens or pixels, and a linear head."""

    def __init__(self, *blocks: nn.Module, tokens: bool) -> None:
        super().__init__()
        self.stem, self.stem_bn, self.stem_lif = nn.Conv2d(3, DIM, 2, 2), nn.BatchNorm2d(DIM), lif()
        self.blocks, self.tokens = nn.ModuleList(blocks), tokens
        self.lifs = nn.ModuleList(lif() for _ in blocks)
        self.head, self.dim = nn.Linear(DIM, 5), DIM

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = self.stem_bn(self.stem(x)).unsqueeze(0).repeat(T, 1, 1, 1, 1)
        y = self.stem_lif(y)
        if self.tokens:
            y = y.flatten(3).transpose(-1, -2).contiguous()
        for block, spike in zip(self.blocks, self.lifs, strict=True):
            y = y + block(spike(y))
        y = y.mean(2) if self.tokens else y.view(T, b, self.dim, h * w // 4).mean(-1)
        return self.head(y.mean(0))


# Where the channels of a group are read: a module, whether they are silenced as its input or as its
# output, the axis, and how many channels of that axis belong to a head beside those of the group.
Read = tuple[str, str, int] | tuple[str, str, int, int]


@dataclass(frozen=True, kw_only=True)
class Hand:
    """A group as worked out by hand."""

    size: int
    heads: int
    reads: tuple[Read, ...]


def network(*blocks: nn.Module, tokens: bool) -> nn.Module:
    torch.manual_seed(0)
    return settled(Net(*blocks, tokens=tokens))


def settled(net: nn.Module) -> nn.Module:
    """Statistics and scales with which neurons fire, in double precision."""
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.5, 2.5)
            nn.init.uniform_(module.bias, 0.2, 0.6)
            module.momentum = None
    for _ in range(3):
        net(x)
        functional.reset_net(net)
    return net.double().eval()


WIDTH = DIM // HEADS
TOKEN, PIXEL = 3, 2  # where channels stand
ATTENTION = {
    "blocks.0.q+k": Hand(
        size=WIDTH,
        heads=HEADS,
        reads=(("blocks.0.q_lif", "out", TOKEN), ("blocks.0.k_lif", "out", TOKEN)),
    ),
    "blocks.0.v": Hand(size=WIDTH, heads=HEADS, reads=(("blocks.0.proj.lin", "in", TOKEN),)),
    "blocks.1.fc1": Hand(size=2 * DIM, heads=1, reads=(("blocks.1.fc2.lin", "in", TOKEN),)),
    "stem:stream": Hand(
        size=DIM,
        heads=1,
        reads=(
            *((f"blocks.0.{n}.lin", "in", TOKEN) for n in "qkv"),
            ("blocks.1.fc1.lin", "in", TOKEN),
            ("head", "in", 1),
        ),
    ),
}
WRITTEN: dict[str, tuple[Any, dict[str, Hand]]] = {
    "Spikformer": (
        lambda: network(SelfAttention(), Hidden(), tokens=True),
        ATTENTION,
    ),
    "einops": (
        lambda: network(Patterns(), Hidden(), tokens=True),
        ATTENTION,
    ),
    "SDT-V1": (
        lambda: network(DrivenAttention(), tokens=False),
        {
            "blocks.0.q+k+v": Hand(
                size=WIDTH, heads=HEADS, reads=(("blocks.0.proj.conv", "in", 1),)
            ),
            "stem:stream": Hand(
                size=DIM,
                heads=1,
                reads=(*((f"blocks.0.{n}.conv", "in", 1) for n in "qkv"), ("head", "in", 1)),
            ),
        },
    ),
    "QKFormer": (
        lambda: network(TokenAttention(), tokens=False),
        {
            "blocks.0.q": Hand(size=WIDTH, heads=HEADS, reads=(("blocks.0.q_lif", "out", PIXEL),)),
            "blocks.0.k": Hand(size=WIDTH, heads=HEADS, reads=(("blocks.0.proj.conv", "in", 1),)),
            "stem:stream": Hand(
                size=DIM,
                heads=1,
                reads=(*((f"blocks.0.{n}.conv", "in", 1) for n in "qk"), ("head", "in", 1)),
            ),
        },
    ),
    "Max-Former": (
        lambda: network(Mixing(), tokens=False),
        {
            "blocks.0.pw1": Hand(size=2 * DIM, heads=1, reads=(("blocks.0.pw2.conv", "in", 1),)),
            "stem:stream": Hand(
                size=DIM, heads=1, reads=(("blocks.0.pw1.conv", "in", 1), ("head", "in", 1))
            ),
        },
    ),
    "SGLFormer": (
        lambda: network(Windows(), tokens=False),
        {
            "blocks.0.attn.q+k": Hand(
                size=WIDTH,
                heads=HEADS,
                reads=(
                    ("blocks.0.attn.q_lif", "out", TOKEN),
                    ("blocks.0.attn.k_lif", "out", TOKEN),
                ),
            ),
            "blocks.0.attn.v": Hand(
                size=WIDTH, heads=HEADS, reads=(("blocks.0.attn.proj.lin", "in", TOKEN),)
            ),
            "stem:stream": Hand(
                size=DIM,
                heads=1,
                reads=(
                    *((f"blocks.0.attn.{n}.lin", "in", TOKEN) for n in "qkv"),
                    ("head", "in", 1),
                ),
            ),
        },
    ),
    "SpikingResformer": (
        lambda: network(DualAttention(), tokens=False),
        {
            "blocks.0.kv": Hand(size=WIDTH, heads=HEADS, reads=(("blocks.0.proj.conv", "in", 1),)),
            "stem:stream": Hand(
                size=WIDTH,
                heads=HEADS,
                reads=(
                    ("blocks.0.kv.conv", "in", 1),
                    ("blocks.0.kv_lif", "out", PIXEL, WIDTH),
                    ("head", "in", 1),
                ),
            ),
        },
    ),
}

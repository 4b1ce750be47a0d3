"""Configs and blocks of the families with one stage of equal blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from primesvt.models.config import ModelConfig, check_positive, check_tau

__all__ = ["DIGITS_SIZES", "IsotropicConfig", "check_attn_scale", "cifar_sizes", "equal_blocks"]

Config = TypeVar("Config", bound="IsotropicConfig")

# Of our own small models for the digits.
DIGITS_SIZES: dict[str, Any] = {
    "layout": "cifar",
    "in_channels": 1,
    "num_classes": 10,
    "time_steps": 2,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "pooling_stat": "0001",
}


@dataclass(frozen=True, kw_only=True)
class IsotropicConfig(ModelConfig):
    """Sizes of a transformer of ``depth`` equal blocks behind a stem of several convolutions.

    The stem starts at an eighth of ``embed_dim``; ``pooling_stat`` has a flag, ``"1"`` or ``"0"``,
    for each of the four places in it where the image may be halved. ``tau`` is the membrane time
    constant.

    Example:
        >>> IsotropicConfig(embed_dim=48, num_heads=4, mlp_ratio=2.5).hidden
        120
    """

    embed_dim: int = 512
    depth: int = 8
    num_heads: int = 8
    mlp_ratio: float = 4
    pooling_stat: str = "1111"
    tau: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "depth", "num_heads")
        check_positive(self, "embed_dim", minimum=8)
        check_tau(self.tau)
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim is {self.embed_dim}, which {self.num_heads} heads do not divide;"
                " change num_heads or the width"
            )
        if not isinstance(self.mlp_ratio, int | float) or not self.hidden >= 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio!r}, but must leave a channel")
        flags = self.pooling_stat
        if not isinstance(flags, str) or len(flags) != 4 or not set(flags) <= {"0", "1"}:
            raise ValueError(
                f"pooling_stat is {flags!r}, but needs four flags 0 or 1, one per place in the stem"
                ' where the image may be halved, such as "0011"'
            )

    @property
    def hidden(self) -> int:
        """Channels between the two layers of an MLP."""
        return round(self.embed_dim * self.mlp_ratio)


def cifar_sizes(classes: int, depth: int, width: int, heads: int) -> dict[str, Any]:
    """Settings of a model for CIFAR images: the given sizes, and no pooling in the early stem.

    Example:
        >>> cifar_sizes(10, 4, 384, 12)["pooling_stat"]
        '0011'
    """
    return {
        "layout": "cifar",
        "num_classes": classes,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "pooling_stat": "0011",
    }


def check_attn_scale(scale: float) -> None:
    """Raise ``ValueError`` unless the factor of the attention is a positive number.

    Example:
        >>> check_attn_scale(0.125)
    """
    if not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"attn_scale is {scale!r}, but must be above 0, such as 0.125")


def equal_blocks(
    config: Config, stem: Callable[[Config], nn.Module], block: Callable[[Config], nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """The named stem and blocks of a config, built one after another.

    Example:
        >>> small = IsotropicConfig(depth=2)
        >>> [name for name, _ in equal_blocks(small, lambda _: nn.Identity(), lambda _: nn.ReLU())]
        ['stem', 'block0', 'block1']
    """
    yield "stem", stem(config)
    for index in range(config.depth):
        yield f"block{index}", block(config)

"""What the configs of families with one stage of equal blocks have in common."""

from __future__ import annotations

from dataclasses import dataclass

from primesvt.models.config import ModelConfig, check_positive, check_tau

__all__ = ["IsotropicConfig"]


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

"""Short names of channel groups and layers, for pages and tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

__all__ = ["block_of", "by_block", "inside"]


def block_of(name: str) -> str:
    """The block that a layer or group stands in: its first name, or two of ``blocks.NAME``.

    Example:
        >>> block_of("blocks.block3_0.attn.q+k"), block_of("head.weight"), block_of("fc")
        ('block3_0', 'head', 'fc')
    """
    parts = name.split(".")
    return parts[1] if parts[0] == "blocks" and len(parts) > 1 else parts[0]


def inside(name: str) -> str:
    """The rest of a layer's or group's name, without that of its block.

    Example:
        >>> inside("blocks.block3_0.attn.q+k"), inside("fc")
        ('attn.q+k', 'fc')
    """
    rest = name.removeprefix("blocks.").removeprefix(block_of(name)).lstrip(".")
    return rest or name


def by_block(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names of layers or groups, gathered by the block that they stand in.

    Example:
        >>> by_block(["blocks.a.x", "blocks.a.y", "head"])
        [('a', ['blocks.a.x', 'blocks.a.y']), ('head', ['head'])]
    """
    ordered = list(names)
    blocks = list(dict.fromkeys(map(block_of, ordered)))
    ordered.sort(key=lambda name: blocks.index(block_of(name)))
    return [(block, list(group)) for block, group in groupby(ordered, block_of)]

"""Small helpers for tables of official names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["count", "transformer_block", "under"]


def under(ours: str, official: str, inside: Mapping[str, str]) -> dict[str, str]:
    """Put a table of names below a path of ours and an official one.

    Example:
        >>> under("blocks.block0", "block.0", {"": "", "attn.q.conv": "attn.q_conv"})
        {'blocks.block0': 'block.0', 'blocks.block0.attn.q.conv': 'block.0.attn.q_conv'}
    """
    return {
        f"{ours}.{a}".removesuffix("."): f"{official}.{b}".removesuffix(".")
        for a, b in inside.items()
    }


def count(keys: Iterable[str], pattern: str, start: int = 0) -> int:
    """How many numbers in a row, from ``start``, begin some key.

    Example:
        >>> count(["block.0.attn.q", "block.1.attn.q", "head"], "block.{}.")
        2
    """
    known, number = list(keys), start
    while any(key.startswith(pattern.format(number)) for key in known):
        number += 1
    return number - start


def transformer_block(spike: str) -> dict[str, str]:
    """Our names inside a transformer block of SDT-V2 and V3, and the official ones.

    ``spike`` is what the official code calls its neurons.

    Example:
        >>> transformer_block("lif")["mlp.lif1"]
        'mlp.fc1_lif'
    """
    return {
        "": "",
        "attn": "attn",
        "attn.lif": f"attn.head_{spike}",
        **{f"attn.{part}_lif": f"attn.{part}_{spike}" for part in ("q", "k", "v", "attn")},
        "mlp": "mlp",
        **{
            name: official
            for i in (1, 2)
            for name, official in (
                (f"mlp.lif{i}", f"mlp.fc{i}_{spike}"),
                (f"mlp.fc{i}.conv", f"mlp.fc{i}_conv"),
                (f"mlp.fc{i}.bn", f"mlp.fc{i}_bn"),
            )
        },
    }

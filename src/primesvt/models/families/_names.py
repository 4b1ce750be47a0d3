"""Parts of the tables of official names that several families share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["NUMBERED_STEM", "QKV_PROJ", "count", "layers", "transformer_block", "under"]

QKV_PROJ = ("q", "k", "v", "proj")


# Four convolutions with their neurons, and the position embedding behind them.
NUMBERED_STEM = {
    "": "",
    **{
        f"{ours}{number}{inside}": f"proj_{official}{number or ''}"
        for number in range(4)
        for ours, inside, official in (
            ("conv", ".conv", "conv"),
            ("conv", ".bn", "bn"),
            ("lif", "", "lif"),
        )
    },
    "rpe.conv": "rpe_conv",
    "rpe.bn": "rpe_bn",
}


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


def layers(
    ours: str, official: str, names: Iterable[str], parts: Iterable[str] = ("conv", "bn")
) -> dict[str, str]:
    """The parts of layers, which the official code keeps beside each other.

    Example:
        >>> layers("attn", "attn", ["q"])
        {'attn.q.conv': 'attn.q_conv', 'attn.q.bn': 'attn.q_bn'}
    """
    kinds = tuple(parts)
    return {
        f"{ours}.{name}.{part}": f"{official}.{name}_{part}" for name in names for part in kinds
    }


def count(keys: Iterable[str], pattern: str, start: int = 0) -> int:
    """Number of consecutive indices, from ``start``, with which some key begins.

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
        **{f"mlp.lif{i}": f"mlp.fc{i}_{spike}" for i in (1, 2)},
        **layers("mlp", "mlp", ("fc1", "fc2")),
    }

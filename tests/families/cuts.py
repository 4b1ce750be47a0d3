"""Cuts as the tests draw them, and the same channels as indices of a whole axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from primesvt.channels import ChannelGraph


def flat(kept: Any, size: int) -> np.ndarray:
    """Kept indices ``[positions][k]`` as indices of the whole axis, head by head."""
    rows = np.atleast_2d(np.asarray(kept))
    return np.concatenate([np.sort(row) + i * size for i, row in enumerate(rows)])


def gone(kept: Any, size: int) -> list[int]:
    """The removed indices of the whole axis."""
    rows = np.atleast_2d(np.asarray(kept))
    return sorted(set(range(rows.shape[0] * size)) - set(flat(kept, size).tolist()))


def random_cuts(
    graph: ChannelGraph, rng: np.random.Generator, *, streams: bool = False
) -> Mapping[str, np.ndarray]:
    """Several groups at once; other channels, in any order, at every front position."""
    cuts = {}
    for group in graph:
        wanted = group.prunable or (streams and group.kind == "stream" and group.status == "free")
        if not wanted or rng.random() < 0.3:
            continue
        count = int(rng.integers(1, group.size + 1))
        cuts[group.name] = np.stack(
            [rng.permutation(group.size)[:count] for _ in range(group.positions)]
        )
    return cuts

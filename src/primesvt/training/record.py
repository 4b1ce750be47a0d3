"""How a checkpoint was made, and how good it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Score", "TrainRecord"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Top-1 accuracy on one set, with its Wilson interval at 95 % confidence."""

    accuracy: float
    low: float
    high: float
    images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """How a checkpoint was made, and how good it is; written beside it as ``record.json``.

    ``data_config`` says how images were prepared. ``kept_epoch`` counts from 1; ``loss`` and
    ``selection_accuracy`` have one value per epoch. ``notes``: what the scores depend on beside.
    """

    format: int = 1
    command: str
    recipe: Mapping[str, Any]
    data: str
    data_config: Mapping[str, Any]
    held_out_seed: int
    versions: Mapping[str, str]
    parameters: int
    seconds: float
    kept_epoch: int
    selection: Score
    test: Score | None
    loss: tuple[float, ...]
    selection_accuracy: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

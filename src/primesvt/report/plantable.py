"""The plan as a table: what each cut took, and the whole network after it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from primesvt.report.names import block_of, inside
from primesvt.report.run_files import RunFiles
from primesvt.report.tradeoff_plot import text_of

__all__ = ["Cut", "kept_share", "plan_table"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One row: ``kept`` is the share of channels that stay, ``accuracy`` empty if not measured."""

    block: str
    group: str
    rate: str
    channels: str
    kept: float
    accuracy: str
    saving: str
    recovery: str
    detail: str


def plan_table(run: RunFiles) -> list[Cut]:
    """The cuts of a plan, in the order in which they were taken."""
    return [_cut(step, images=run.images) for step in run.steps]


def kept_share(step: Mapping[str, Any]) -> float:
    """The share of its channels that a group keeps.

    Example:
        >>> kept_share({"before": [4, 8], "after": [4, 2]})
        0.25
    """
    return float(step["after"][1]) / float(step["before"][1])


def _cut(step: Mapping[str, Any], *, images: bool) -> Cut:
    recovery = step.get("recovery", "")
    return Cut(
        block=block_of(step["group"]),
        group=inside(step["group"]),
        # A lossless cut before the policy's own has no rate.
        rate="lossless" if recovery.startswith("lossless") else f"{step['rate']:.0%}",
        channels=f"{_width(*step['before'])} to {_width(*step['after'])}",
        kept=kept_share(step),
        accuracy="" if step["accuracy"] is None else text_of(step["accuracy"], images=images),
        saving=f"{step['saving']:.1%}",
        recovery=_short(recovery),
        detail=recovery,
    )


def _short(recovery: str) -> str:
    """Without the names of the layers that made up for the cut."""
    return re.sub(r" \([^)]*\)", "", recovery).partition(";")[0]


def _width(positions: int, size: int) -> str:
    return f"{positions} x {size}" if positions > 1 else str(size)

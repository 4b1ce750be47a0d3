"""Accuracy against memory of a run as a picture file, for pages that show no other."""

from __future__ import annotations

import io
from typing import Any

from primesvt.report.run_files import RunFiles
from primesvt.report.tradeoff_plot import Network, networks, text_of

__all__ = ["picture"]

_TRIED, _WAY, _LIMIT = "#9aa5b1", "#1f6feb", "#c2410c"


def picture(run: RunFiles) -> tuple[bytes, str] | None:
    """Every whole network that a run measured: a PNG, and the text that stands for it.

    ``None`` where none but the unpruned one was measured.
    """
    found = networks(run)
    taken = [each for each in found if each.role in ("before", "step", "plan")]
    if len(found) < 2 or len(taken) < 2:
        return None
    first, last = taken[0], taken[-1]
    text = (
        f"Accuracy against parameter memory saved, for {len(found)} networks: from"
        f" {text_of(first.value, images=run.images)} unpruned to"
        f" {text_of(last.value, images=run.images)} with {last.saving:.1%} saved"
    )
    return _drawn(run, found, taken), text


def _drawn(run: RunFiles, found: list[Network], taken: list[Network]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    unit = 100.0 if run.images else 1.0
    tried = [each for each in found if each.role == "tried"]
    axes.scatter(*_points(tried, unit), s=14, color=_TRIED, label="measured on the way")
    axes.plot(*_points(taken, unit), marker="o", color=_WAY, label="taken")
    asked = run.metrics.get("limits", {}).get("max_accuracy_drop")
    if asked is not None:
        limit = unit * taken[0].value - asked
        axes.axhline(limit, color=_LIMIT, linestyle="--", linewidth=1, label="accuracy limit")
    _labelled(axes, run, taken, unit)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _labelled(axes: Any, run: RunFiles, taken: list[Network], unit: float) -> None:
    axes.set_xlabel("parameter memory saved, %")
    axes.set_ylabel("top-1 on the selection set, %" if run.images else "score")
    values = [unit * each.value for each in taken]
    room = max(values) - min(values) or 1.0
    axes.set_ylim(min(values) - 3 * room, max(values) + room)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.figure.legend(frameon=False, loc="outside upper center", ncols=3)


def _points(networks: list[Network], unit: float) -> tuple[list[float], list[float]]:
    return [100 * each.saving for each in networks], [unit * each.value for each in networks]

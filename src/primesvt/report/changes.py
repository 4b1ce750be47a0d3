"""What pruning changed, measure by measure, as a terminal and a page show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from primesvt._format import megabytes, percent_points
from primesvt.profiling.limits import Held
from primesvt.report.costs import cost_rows, relative

__all__ = ["Change", "changes", "headline"]

SIZES = {"Parameter memory": "parameter_bytes", "Batch-norm buffers": "buffer_bytes"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measure before and after pruning, as text.

    ``part`` is ``quality``, ``size`` or ``cost``: what it takes to run.
    """

    measure: str
    before: str
    after: str
    change: str
    part: Literal["quality", "size", "cost"] = "size"


def changes(metrics: Mapping[str, Any]) -> list[Change]:
    """What pruning changed, measure by measure; what was not measured is left out."""
    before, after = metrics["before"], metrics["after"]
    rows: list[Change] = []
    for name in ("test", "selection"):
        if before.get(name) and after.get(name):
            rows += _accuracy(name, before[name], after[name])
    if before.get("score") is not None:
        rows.append(_score(before["score"], after["score"]))
    rows.append(_count("Parameters", before["parameters"], after["parameters"]))
    rows += [_size(name, before[key], after[key]) for name, key in SIZES.items() if key in before]
    return [*rows, *(_cost(*row) for row in cost_rows(before, after))]


def headline(metrics: Mapping[str, Any]) -> str:
    """The trade in one line; what went losslessly before is named beside the saving."""
    saved = f"{metrics['saving']:.1%} less parameter memory{_beside(metrics.get('lossless'))}"
    for limit in map(Held.from_dict, metrics.get("others") or ()):
        saved += f", {1 - limit.after / limit.before:.1%} less {limit.what}"
    if metrics["after"].get("selection") is None:
        drop = metrics["before"]["score"] - metrics["after"]["score"]
        return f"{saved}, {-drop + 0.0:+.4g} of the score"
    name = "test" if metrics["after"].get("test") else "selection"
    drop = metrics["before"][name]["accuracy"] - metrics["after"][name]["accuracy"]
    return f"{saved}, {percent_points(-drop)} of accuracy on the {name} set"


def _beside(lossless: Mapping[str, Any] | None) -> str:
    """What the lossless step saved, where it shows."""
    share = lossless["share"] if lossless else 0.0
    return f" after {share:.1%} lossless" if share >= 0.005 else ""


def _accuracy(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(
            measure=f"Top-1, {name} set of {before['images']:,}",
            before=f"{before['accuracy']:.2%}",
            after=f"{after['accuracy']:.2%}",
            change=percent_points(after["accuracy"] - before["accuracy"]),
            part="quality",
        ),
        Change(
            measure="  95% interval",
            before=_interval(before),
            after=_interval(after),
            change="",
            part="quality",
        ),
    ]


def _interval(score: Mapping[str, Any]) -> str:
    return f"{100 * score['low']:.1f} .. {100 * score['high']:.1f}%"


def _score(before: float, after: float) -> Change:
    return Change(
        measure="Score",
        before=f"{before:.4g}",
        after=f"{after:.4g}",
        change=f"{after - before:+.4g}",
        part="quality",
    )


def _count(measure: str, before: int, after: int) -> Change:
    return Change(
        measure=measure,
        before=f"{before:,}",
        after=f"{after:,}",
        change=relative(before, after),
    )


def _size(measure: str, before: int, after: int) -> Change:
    return Change(
        measure=measure,
        before=megabytes(before),
        after=megabytes(after),
        change=relative(before, after),
    )


def _cost(measure: str, before: str, after: str, change: str) -> Change:
    return Change(measure=measure, before=before, after=after, change=change, part="cost")

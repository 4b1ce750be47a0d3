"""Accuracy against memory saved for several runs: one way each, and where it ended."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from primesvt.report.plots import Axis, Mark, Plot, Segment, axis
from primesvt.report.run_files import RunFiles
from primesvt.report.tradeoff_plot import Network, networks, score_axis, text_of

__all__ = ["COLOURS", "comparison_plot"]

COLOURS = 6


def comparison_plot(runs: Sequence[RunFiles], names: Sequence[str]) -> Plot | None:
    """The plot; ``None`` where accuracies and scores would share an axis."""
    if len({run.images for run in runs}) > 1:
        return None
    ways = [_way(run) for run in runs]
    ends = [_whisker(run) for run in runs]
    values = [each.value for way in ways for each in way] + [v for end in ends for v in end or ()]
    high = 100 * max(each.saving for way in ways for each in way)
    x = axis(0, high, title="Parameter memory saved", count=8, tight=True)
    y = score_axis(runs[0], values)
    unit = 100.0 if runs[0].images else 1.0
    marks, segments = [], []
    for number, (run, way, end) in enumerate(zip(runs, ways, ends, strict=True)):
        kind = f"run r{number % COLOURS}"
        places = [(x.at(100 * each.saving), 100 - y.at(unit * each.value)) for each in way]
        segments += _segments(places, f"{kind} {'way' if len(way) > 2 else 'jump'}")
        marks.append(_mark(way[-1], places[-1], end, run, y, kind=kind, label=str(number + 1)))
    told = "; ".join(
        f"{name} {way[-1].saving:.1%} at {text_of(way[-1].value, images=run.images)}"
        for run, name, way in zip(runs, names, ways, strict=True)
    )
    what = "accuracy on the selection set" if runs[0].images else "score"
    return Plot(
        label=f"Plot of {what} against parameter memory saved: {told}.",
        x=x,
        y=y,
        marks=tuple(marks),
        segments=tuple(segments),
    )


def _way(run: RunFiles) -> list[Network]:
    """The unpruned network, and every measured one on the way to the plan."""
    way = [each for each in networks(run) if each.role in ("before", "step", "plan")]
    return sorted(way, key=lambda each: each.groups)


def _whisker(run: RunFiles) -> tuple[float, float] | None:
    found = run.metrics["after"].get("selection")
    return (found["low"], found["high"]) if found else None


def _segments(places: list[tuple[float, float]], kind: str) -> list[Segment]:
    return [
        Segment(x1=x1, y1=y1, x2=x2, y2=y2, kind=kind) for (x1, y1), (x2, y2) in pairwise(places)
    ]


def _mark(
    last: Network,
    place: tuple[float, float],
    end: tuple[float, float] | None,
    run: RunFiles,
    y: Axis,
    *,
    kind: str,
    label: str,
) -> Mark:
    value = text_of(last.value, images=run.images)
    return Mark(
        x=place[0],
        y=place[1],
        kind=kind,
        text=f"{run.path.name}: {last.saving:.1%} saved, {value}",
        label=label,
        whisker=None if end is None else (100 - y.at(100 * end[0]), 100 - y.at(100 * end[1])),
    )

"""Plots of accuracy against parameter memory: all networks that runs measured, and their plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from primesvt.report.plots import Axis, Mark, Plot, Rule, Segment, axis
from primesvt.report.run_files import RunFiles

__all__ = [
    "COLOURS",
    "Network",
    "TradeoffPlot",
    "comparison_plot",
    "networks",
    "score_axis",
    "text_of",
    "walk_plot",
]


COLOURS = 6


def comparison_plot(runs: Sequence[RunFiles], names: Sequence[str]) -> Plot | None:
    """Plot several runs together; ``None`` where accuracies and scores would share an axis."""
    if len({run.images for run in runs}) > 1:
        return None
    ways = [_path(networks(run)) for run in runs]
    selections = [run.metrics["after"].get("selection") for run in runs]
    ends = [(found["low"], found["high"]) if found else None for found in selections]
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
        marks.append(_run_mark(way[-1], places[-1], end, run, y, kind=kind, label=str(number + 1)))
    outcomes = "; ".join(
        f"{name} {way[-1].saving:.1%} at {text_of(way[-1].value, images=run.images)}"
        for run, name, way in zip(runs, names, ways, strict=True)
    )
    what = "accuracy on the selection set" if runs[0].images else "score"
    return Plot(
        label=f"Plot of {what} against parameter memory saved: {outcomes}.",
        x=x,
        y=y,
        marks=tuple(marks),
        segments=tuple(segments),
    )


def _path(found: list[Network]) -> list[Network]:
    """The unpruned network, and the measured ones from cut to cut up to the plan."""
    path = [each for each in found if each.role in ("before", "step", "plan")]
    return sorted(path, key=lambda each: each.groups)


def _segments(places: list[tuple[float, float]], kind: str) -> list[Segment]:
    return [
        Segment(x1=x1, y1=y1, x2=x2, y2=y2, kind=kind) for (x1, y1), (x2, y2) in pairwise(places)
    ]


def _run_mark(
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


DEPTH = 3.0  # limits below the unpruned accuracy that the plot reaches down to, at most


@dataclass(frozen=True, kw_only=True)
class Network:
    """One measured network: its saving, its accuracy or score, and its role in the search.

    ``role`` is ``before``, ``step`` (a cut of the plan), ``plan`` (the last of them), ``tried`` or
    ``rejected`` (early, on the ``samples`` that it had seen).
    """

    role: str
    saving: float
    value: float
    groups: int
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class TradeoffPlot:
    """A plot of networks, the networks themselves, and how many lie below the plot's lower edge."""

    plot: Plot
    rows: tuple[Network, ...]
    below: int
    measured_steps: bool


def networks(run: RunFiles) -> list[Network]:
    """Every network that a run measured with all its cuts, sorted by saving, then by accuracy.

    Networks with a single group cut are left out, as they only show how robust that group is.
    """
    found, known = _taken(run)
    for row in run.probes:
        whole = row["kind"] == "walk" or (row["kind"] == "layer" and len(row["cuts"]) > 1)
        if whole and row["cuts"] not in known:
            found.append(
                Network(
                    role="tried" if row.get("rejected") is None else "rejected",
                    saving=row["saving"],
                    value=row["accuracy"],
                    groups=len(row["cuts"]),
                    samples=row.get("samples"),
                )
            )
    return sorted(found, key=lambda each: (each.saving, -each.value))


def walk_plot(run: RunFiles) -> TradeoffPlot | None:
    """Plot the networks of one run; ``None`` where only the unpruned one was measured."""
    found = networks(run)
    if len(found) < 2:
        return None
    reference = next(each.value for each in found if each.role == "before")
    asked = run.metrics.get("limits", {}).get("max_accuracy_drop")
    limit = None if asked is None else reference - asked / _unit(run)
    floor = reference - DEPTH * (reference - limit) if limit is not None else 0.0
    chosen = [each.value for each in found if each.role in ("step", "plan")]
    lowest = min([*chosen, max(floor, min(each.value for each in found))])
    y = score_axis(run, [lowest, *_ends(run), *([limit] if limit is not None else [])])
    x = axis(
        0,
        100 * max(each.saving for each in found),
        title="Parameter memory saved",
        count=8,
        tight=True,
    )
    below = sum(_unit(run) * each.value < y.low for each in found)
    # What is drawn last lies on top.
    order = ("rejected", "tried", "step", "before", "plan")
    drawn = sorted(found, key=lambda each: order.index(each.role))
    places = [(x.at(100 * e.saving), 100 - y.at(_unit(run) * e.value)) for e in _path(found)]
    steps = any(each.role == "step" for each in found)
    rules = []
    if limit is not None:
        label = f"limit {text_of(limit, images=run.images)}"
        rules.append(Rule(y=100 - y.at(_unit(run) * limit), label=label))
    plot = Plot(
        label=_label(run, found),
        x=x,
        y=y,
        marks=tuple(_mark(run, each, x, y) for each in drawn),
        segments=tuple(_segments(places, "way" if steps else "jump")),
        rules=tuple(rules),
    )
    measured = steps or len(run.steps) == 1
    return TradeoffPlot(plot=plot, rows=tuple(found), below=below, measured_steps=measured)


def score_axis(run: RunFiles, values: list[float]) -> Axis:
    """A vertical axis of accuracies in percent, or of scores."""
    unit = _unit(run)
    title = "Top-1, selection set" if run.images else "Score"
    high = min(100.0, unit * max(values)) if run.images else max(values)
    return axis(unit * min(values), high, title=title, unit="%" if run.images else "")


def text_of(value: float, *, images: bool) -> str:
    """An accuracy in percent, or a score.

    Example:
        >>> text_of(0.98222, images=True), text_of(0.98222, images=False)
        ('98.22%', '0.9822')
    """
    return f"{value:.2%}" if images else f"{value:.4g}"


def _unit(run: RunFiles) -> float:
    return 100.0 if run.images else 1.0


def _value(run: RunFiles, when: str) -> float:
    costs = run.metrics[when]
    return float(costs["selection"]["accuracy"] if run.images else costs["score"])


def _ends(run: RunFiles) -> list[float]:
    """Accuracies of the first and the last network, and the ends of their intervals."""
    found = [_value(run, "before"), _value(run, "after")]
    if run.images:
        found += [run.metrics[when]["selection"]["low"] for when in ("before", "after")]
        found += [run.metrics[when]["selection"]["high"] for when in ("before", "after")]
    return found


def _taken(run: RunFiles) -> tuple[list[Network], list[dict[str, int]]]:
    """The unpruned network and the measured steps of the plan; and the cuts of each of these."""
    found = [Network(role="before", saving=0.0, value=_value(run, "before"), groups=0)]
    cuts: dict[str, int] = {}
    known = []
    for number, step in enumerate(run.steps, start=1):
        if not step.get("recovery", "").startswith("lossless"):  # those are in no probe's cuts
            cuts[step["group"]] = step["after"][1]
        if step["accuracy"] is None:
            continue
        role = "plan" if number == len(run.steps) else "step"
        known.append(dict(cuts))
        found.append(
            Network(role=role, saving=step["saving"], value=step["accuracy"], groups=number)
        )
    return found, known


def _mark(run: RunFiles, each: Network, x: Axis, y: Axis) -> Mark:
    unit, value = _unit(run), text_of(each.value, images=run.images)
    names = {"before": "Before", "plan": "The plan"}
    when = {"before": "before", "plan": "after"}.get(each.role)
    whisker = None
    if when and run.images:
        found = run.metrics[when]["selection"]
        whisker = (100 - y.at(unit * found["low"]), 100 - y.at(unit * found["high"]))
    share = f" of the first {each.samples} images" if each.role == "rejected" else ""
    return Mark(
        x=x.at(100 * each.saving),
        y=100 - y.at(unit * each.value),
        kind=each.role if unit * each.value >= y.low else f"{each.role} below",
        text=f"{names.get(each.role, each.role)}: {each.saving:.1%} saved, {value}{share}",
        label=names.get(each.role, ""),
        whisker=whisker,
    )


def _label(run: RunFiles, found: list[Network]) -> str:
    last = max(
        (e for e in found if e.role in ("step", "plan")), key=lambda e: e.groups, default=None
    )
    what = "accuracy on the selection set" if run.images else "score"
    plan = (
        f" The plan saves {last.saving:.1%} at {text_of(last.value, images=run.images)}."
        if last is not None
        else ""
    )
    first = text_of(next(e.value for e in found if e.role == "before"), images=run.images)
    return (
        f"Plot of {what} against parameter memory saved, for {len(found)} networks; "
        f"the unpruned one has {first}.{plan}"
    )

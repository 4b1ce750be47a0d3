"""Several runs side by side on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primesvt._files import write_text
from primesvt.report.changes import Change, changes
from primesvt.report.heatmap import Cell, Heatmap, Row
from primesvt.report.names import by_block, inside
from primesvt.report.page import asked, kept_share, render
from primesvt.report.run_files import RunFiles, read_run, told_as_damage
from primesvt.report.summary import limits_asked, summary, tuning
from primesvt.report.tradeoff_plot import comparison_plot

__all__ = ["Difference", "compare_plans", "compare_recipes", "write_comparison"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting of several runs; ``values`` has an empty text where a run does not know it."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs have different values."""
        return len(set(self.values)) > 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measure of several runs: for each run a value, and the texts below it."""

    name: str
    cells: tuple[tuple[str, ...], ...]


def write_comparison(runs: Sequence[str | Path], out: str | Path = "comparison.html") -> Path:
    """Write one page that compares finished runs; it stands alone like a run's own page.

    Raises:
        ValueError: fewer than two runs, one given twice, or a folder without a finished run.
    """
    if len(runs) < 2:
        raise ValueError(f"a comparison needs two runs or more; got {len(runs)}")
    places = [Path(run).resolve() for run in runs]
    twice = next((run for run in runs if places.count(Path(run).resolve()) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice; name every run once")
    found = [read_run(run) for run in runs]
    with told_as_damage(*runs):
        page = _page(found)
    return write_text(out, page)


def _page(found: list[RunFiles]) -> str:
    """The comparison of some runs as HTML."""
    names = _names(found)
    return render(
        "comparison.html.j2",
        names=names,
        subtitles=[f"{run.model} on {run.data}" for run in found],
        met=[run.metrics["met"] for run in found],
        lines=[*_limits(found), *_figures(found)],
        plot_of=comparison_plot(found, names),
        plans=compare_plans(found),
        recipes=compare_recipes(found),
        folders=[run.path.as_posix() for run in found],
        images=all(run.images for run in found),
    )


def compare_recipes(runs: Sequence[RunFiles]) -> list[Difference]:
    """Every setting of the runs by its undotted name; settings that differ come first."""
    # Runs of the command line and of Python nest their settings differently.
    settings = [
        {name.rpartition(".")[2]: text for name, text in asked(run.recipe).items()} for run in runs
    ]
    names = dict.fromkeys(name for each in settings for name in each)
    found = [
        Difference(name=name, values=tuple(each.get(name, "") for each in settings))
        for name in names
    ]
    return sorted(found, key=lambda each: not each.differs)


def compare_plans(runs: Sequence[RunFiles]) -> Heatmap | None:
    """The share of its channels that every group keeps in every run; ``None`` if none was cut."""
    kept = [{step["group"]: kept_share(step) for step in run.steps} for run in runs]
    cut = {name for each in kept for name in each}
    if not cut:
        return None
    order = list(dict.fromkeys(name for run in runs for name in run.groups if name in cut))
    rows: list[Row] = []
    for block, names in by_block(order):
        rows.append(Row(name=block))
        rows += [
            Row(
                name=inside(name),
                cells=tuple(
                    _kept(own.get(name), known=_has(run, name, runs))
                    for run, own in zip(runs, kept, strict=True)
                ),
            )
            for name in names
        ]
    return Heatmap(
        label=f"Share of channels kept by {len(order)} groups in {len(runs)} runs",
        corner="Channel group",
        columns=tuple(f"{number}: {name}" for number, name in enumerate(_names(runs), start=1)),
        rows=tuple(rows),
    )


def _limits(runs: list[RunFiles]) -> list[Line]:
    """One line for each limit, then whether all were met, which one bound, and the saving."""
    absent = {"Channels kept": "any number", "Judged by": "not recorded"}
    asked_of = [limits_asked(run) for run in runs]
    names = dict.fromkeys(name for each in asked_of for name in each)
    return [
        *(
            Line(
                name=name,
                cells=tuple((each.get(name, absent.get(name, "no limit")),) for each in asked_of),
            )
            for name in sorted(names, key=lambda name: name == "Judged by")
        ),
        Line(
            name="Limits",
            cells=tuple(("met" if run.metrics["met"] else "not met",) for run in runs),
        ),
        Line(name="What bound", cells=tuple((summary(run).bound.lower(),) for run in runs)),
        Line(name="Memory saved", cells=tuple((f"{r.metrics['saving']:.2%}",) for r in runs)),
    ]


def _figures(runs: list[RunFiles]) -> list[Line]:
    """One line for each measure after pruning; below its value the interval and the change."""
    figures = []
    for run in runs:
        figures.append(_by_measure(changes(run.metrics)))
        if tuned := tuning(run):
            figures[-1] |= {
                f"Fine-tuned, {row.name}": (row.tuned, f"{row.change}, before {row.before}")
                for row in tuned.rows
            }
    names = dict.fromkeys(name for each in figures for name in each)
    return [
        Line(name=name, cells=tuple(each.get(name, ("not measured",)) for each in figures))
        for name in sorted(names, key=_place)  # runs may have sets of different sizes
    ]


def _place(name: str) -> int:
    """Accuracies first, then what fine-tuning made of them, then sizes and costs."""
    return 0 if name.startswith("Top-1") else 1 if name.startswith("Fine-tuned") else 2


def _by_measure(rows: list[Change]) -> dict[str, tuple[str, ...]]:
    """The texts of a cell by measure; an indented measure belongs to the one above it."""
    found: dict[str, tuple[str, ...]] = {}
    last = ""
    for row in rows:
        if not row.change:  # an interval
            found[last] = (found[last][0], row.after, *found[last][1:])
            continue
        inner = row.measure.startswith(" ")
        last = last if inner else row.measure
        name = f"{last}, {row.measure.strip()}" if inner else last
        found[name] = (row.after, f"{row.change}, before {row.before}")
    return found


def _has(run: RunFiles, group: str, runs: Sequence[RunFiles]) -> bool:
    """Whether a channel group exists in the model of a run, whether it was cut there or not."""
    if group in run.groups:
        return True
    config: Mapping[str, Any] | None = run.plan.get("config")
    return any(
        config and config == other.plan.get("config") and group in other.groups for other in runs
    )


def _kept(share: float | None, *, known: bool) -> Cell:
    if share is None:
        return Cell(value="100%", tone=0.0) if known else Cell()
    return Cell(value=f"{share:.0%}", tone=round(1 - share, 3))


def _names(runs: Sequence[RunFiles]) -> tuple[str, ...]:
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(each[-length:]) for each in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(run.path.as_posix() for run in runs)

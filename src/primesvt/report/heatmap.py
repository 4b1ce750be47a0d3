"""Heatmap of every channel group cut alone at each pruning rate: accuracy, or output divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from primesvt.channels.widths import RATES, widths
from primesvt.report.names import by_block, inside
from primesvt.report.run_files import RunFiles
from primesvt.report.sizes import sizes_of
from primesvt.report.tradeoff_plot import text_of

__all__ = ["Cell", "Heatmap", "Robustness", "Row", "robustness", "tone"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a heatmap: ``tone`` from 0 (as unpruned) to 1 (farthest), ``None`` where unknown.

    ``strong`` is within the limit, ``chosen`` what the plan took, ``text`` what a pointer shows.
    """

    value: str = ""
    tone: float | None = None
    strong: bool = False
    chosen: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of cells; without cells it is the heading of a block."""

    name: str
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """A table whose cells are tinted: columns, rows, and in words what the tints stand for."""

    label: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def holes(self) -> bool:
        """Whether some cell was not measured."""
        return any(cell.tone is None and not cell.value for row in self.rows for cell in row.cells)

    @property
    def chosen(self) -> bool:
        """Whether some cell shows a width that the plan took."""
        return any(cell.chosen for row in self.rows for cell in row.cells)


def tone(value: float, values: Sequence[float]) -> float:
    """Strength of the tint for a value, 0 to 1: the square root of its share of the largest.

    Roots tell small values apart, which are the ones that matter.

    Example:
        >>> tone(0.25, [0.0, 1.0]), tone(0.0, [0.0])
        (0.5, 0.0)
    """
    largest = max(values, default=0.0)
    return round(max(0.0, value / largest) ** 0.5, 3) if largest > 0 else 0.0


NOT_FINITE = 1e6  # how primesvt.evaluation.divergence writes that answers are not finite


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """A heatmap of groups cut alone, and the groups left out as no file tells their width.

    ``kind`` is ``accuracy`` (or score) or ``distance``.
    """

    heat: Heatmap
    kind: str
    unknown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Alone:
    """One group cut alone: how far its network is, and how that is written."""

    group: str
    kept: int
    far: float
    value: str
    strong: bool


def robustness(run: RunFiles) -> Robustness | None:
    """The heatmap of groups and pruning rates; ``None`` where no group was measured alone.

    Accuracies where groups were judged by them (policy ``prime``), otherwise the distances of the
    answers (policy ``allocate``).
    """
    for kind, found in (("accuracy", _accuracies(run)), ("distance", _distances(run))):
        if found:
            return _map(run, kind, found)
    return None


def _map(run: RunFiles, kind: str, found: list[_Alone]) -> Robustness:
    groups = list(dict.fromkeys(each.group for each in found))
    sizes = sizes_of(run, groups)
    rates = {
        (each.group, each.kept): _rate(run, sizes[each.group], each.kept)
        for each in found
        if each.group in sizes
    }
    chosen = {step["group"]: step["after"][1] for step in run.steps}
    for name, kept in chosen.items():
        if name in sizes and name in groups:
            rates.setdefault((name, kept), _rate(run, sizes[name], kept))
    columns = sorted(set(rates.values()))
    cells = _cells(found, rates, chosen)
    rows: list[Row] = []
    for block, names in by_block(name for name in groups if name in sizes):
        rows.append(Row(name=block))
        rows += [
            Row(name=inside(n), cells=tuple(cells.get((n, rate), Cell()) for rate in columns))
            for n in names
        ]
    judged = "Accuracy" if run.images else "Score"
    what = "Distance of the answers" if kind == "distance" else judged
    heat = Heatmap(
        label=f"{what} of {len(sizes)} channel groups cut alone, at {len(columns)} rates",
        corner="Channel group",
        columns=tuple(f"{rate:.0%}" for rate in columns),
        rows=tuple(rows),
    )
    return Robustness(heat=heat, kind=kind, unknown=tuple(g for g in groups if g not in sizes))


def _cells(
    found: list[_Alone], rates: Mapping[tuple[str, int], float], chosen: Mapping[str, int]
) -> dict[tuple[str, float], Cell]:
    """Cells by group and rate."""
    far = [each.far for each in found if each.far < NOT_FINITE]
    cells = {}
    for (name, kept), rate in rates.items():
        if chosen.get(name) == kept:
            cells[name, rate] = Cell(chosen=True, text=f"keeps {kept}, not measured alone")
    for each in found:
        if each.group not in {name for name, _ in rates}:
            continue
        cells[each.group, rates[each.group, each.kept]] = Cell(
            value=each.value,
            tone=tone(each.far, far) if each.far < NOT_FINITE else 1.0,
            strong=each.strong,
            chosen=chosen.get(each.group) == each.kept,
            text=f"keeps {each.kept}",
        )
    return cells


def _accuracies(run: RunFiles) -> list[_Alone]:
    reference = run.reference.get("accuracy", 0.0)
    unit = 100.0 if run.images else 1.0
    allowed = run.metrics.get("limits", {}).get("max_accuracy_drop")
    return [
        _Alone(
            group=name,
            kept=kept,
            far=max(0.0, reference - row["accuracy"]),
            value=f"{100 * row['accuracy']:.1f}"
            if run.images
            else text_of(row["accuracy"], images=False),
            strong=allowed is not None
            and row.get("rejected") is None
            and unit * (reference - row["accuracy"]) <= allowed + 1e-9,
        )
        for row in run.probes
        if row["kind"] == "layer"
        for name, kept in _single(row)
    ]


def _distances(run: RunFiles) -> list[_Alone]:
    return [
        _Alone(
            group=name,
            kept=kept,
            far=row["distance"],
            value=f"{1000 * row['distance']:.1f}" if row["distance"] < NOT_FINITE else "not finite",
            strong=False,
        )
        for row in run.probes
        if row["kind"] == "distance"
        for name, kept in _single(row)
    ]


def _single(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    cuts = list(row["cuts"].items())
    return cuts if len(cuts) == 1 else []


def _rate(run: RunFiles, size: int, kept: int) -> float:
    """The pruning rate that gives a width; the removed share where no rate of the recipe does."""
    rates = run.settings.get("rates") or RATES
    return widths(size, rates).get(kept, round(1 - kept / size, 2))

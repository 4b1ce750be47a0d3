"""One self-contained page about a run, made from nothing but the run folder's files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from primesvt._files import write_text
from primesvt.text import megabytes, percent_points

__all__ = ["Change", "changes", "headline", "write_report"]

SIZES = {
    "Parameter memory": "parameter_bytes",
    "Batch-norm buffers": "buffer_bytes",
    "Membrane potentials per image": "membrane_bytes_per_sample",
    "Peak activations per image": "peak_activation_bytes_per_sample",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measure before and after pruning, as text."""

    measure: str
    before: str
    after: str
    change: str


def changes(metrics: Mapping[str, Any]) -> list[Change]:
    """What pruning changed, measure by measure; sets that were not measured are left out."""
    before, after = metrics["before"], metrics["after"]
    rows: list[Change] = []
    for name in ("test", "selection"):
        if before.get(name) and after.get(name):
            rows += _accuracy(name, before[name], after[name])
    if before.get("score") is not None:
        rows.append(_score(before["score"], after["score"]))
    rows.append(_count("Parameters", before["parameters"], after["parameters"]))
    for measure, key in SIZES.items():
        if before.get(key) is not None:
            rows.append(_size(measure, before[key], after[key]))
    return rows


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run folder from its recipe, plan and metrics.

    Raises ``ValueError`` where the folder holds no finished run.
    """
    folder = Path(run_dir)
    recipe = yaml.safe_load(_read(folder / "recipe.yaml"))
    plan, metrics = (json.loads(_read(folder / f"{name}.json")) for name in ("plan", "metrics"))
    environment = Environment(
        loader=PackageLoader("primesvt"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        headline=headline(metrics),
        subtitle=f"{recipe.get('model', 'a model')} on {recipe.get('data', 'data')} given in Python"
        if "data" not in recipe
        else f"{recipe['model']} on {recipe['data']}",
        met=metrics["met"],
        verdict=metrics["verdict"],
        warnings=_warnings(metrics),
        changes=changes(metrics),
        notes=[metrics["data"], *metrics.get("notes", [])],
        steps=_steps(plan, images=bool(metrics["before"]["selection"])),
        folder=folder.as_posix(),
        asked=list(_flat(recipe)),
    )
    return write_text(folder / "report.html", page)


def headline(metrics: Mapping[str, Any]) -> str:
    """The trade in one line; what went losslessly before is named beside the saving."""
    saved = f"{metrics['saving']:.1%} less parameter memory{_beside(metrics.get('lossless'))}"
    if metrics["after"].get("selection") is None:
        drop = metrics["before"]["score"] - metrics["after"]["score"]
        return f"{saved}, {-drop:+.4g} of the score"
    name = "test" if metrics["after"].get("test") else "selection"
    drop = metrics["before"][name]["accuracy"] - metrics["after"][name]["accuracy"]
    return f"{saved}, {percent_points(-drop)} of accuracy on the {name} set"


def _beside(lossless: Mapping[str, Any] | None) -> str:
    """What the lossless step saved, where it shows."""
    share = lossless["share"] if lossless else 0.0
    return f" after {share:.1%} lossless" if share >= 0.0005 else ""


def _accuracy(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(
            measure=f"Top-1, {name} set of {before['images']:,}",
            before=f"{before['accuracy']:.2%}",
            after=f"{after['accuracy']:.2%}",
            change=percent_points(after["accuracy"] - before["accuracy"]),
        ),
        Change(
            measure="  95% interval", before=_interval(before), after=_interval(after), change=""
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
    )


def _count(measure: str, before: int, after: int) -> Change:
    return Change(
        measure=measure,
        before=f"{before:,}",
        after=f"{after:,}",
        change=_relative(before, after),
    )


def _size(measure: str, before: int, after: int) -> Change:
    return Change(
        measure=measure,
        before=megabytes(before),
        after=megabytes(after),
        change=_relative(before, after),
    )


def _relative(before: int, after: int) -> str:
    return f"{(after - before) / before:+.1%}" if before else ""


def _steps(plan: Mapping[str, Any], *, images: bool) -> list[dict[str, Any]]:
    """The walk, with a bar whose full width is 6 rem for the largest saving."""
    steps = plan["steps"]
    largest = max((step["saving"] for step in steps), default=0.0) or 1.0
    return [
        {
            "group": step["group"],
            "rate": _rate(step),
            "channels": f"{_width(*step['before'])} to {_width(*step['after'])}",
            "accuracy": _value(step["accuracy"], images=images),
            "saving": f"{step['saving']:.1%}",
            "bar": round(6 * step["saving"] / largest, 2),
        }
        for step in steps
    ]


def _rate(step: Mapping[str, Any]) -> str:
    """The rate of a policy's cut; the lossless ones before it have none."""
    alone = step.get("recovery", "").startswith("lossless")
    return "lossless" if alone else f"{step['rate']:.0%}"


def _value(accuracy: float | None, *, images: bool) -> str:
    """A step's accuracy; empty where its network was not measured."""
    if accuracy is None:
        return ""
    return f"{accuracy:.2%}" if images else f"{accuracy:.4g}"


def _width(positions: int, size: int) -> str:
    return f"{positions} x {size}" if positions > 1 else str(size)


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    if not metrics.get("selection_from_train"):
        return []
    return ["Choices were made on images the model was trained on: drops look too small there."]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} holds no finished run: {path.name} is missing") from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and plain values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            plain = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{name}", "none" if plain in ("", None) else str(plain)

"""The page of one run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from primesvt._files import write_text
from primesvt._format import shown
from primesvt.report.changes import Change, changes, cost_notes, firing_rates, headline
from primesvt.report.heatmap import robustness
from primesvt.report.names import block_of, inside
from primesvt.report.run_files import RunFiles, flat, read_run, told_as_damage
from primesvt.report.sizes import block_sizes
from primesvt.report.summary import summary, tuning
from primesvt.report.tradeoff_plot import text_of, walk_plot

__all__ = ["Cut", "asked", "kept_share", "plan_table", "render", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One cut of a plan as text: ``kept`` is the share of channels that stay.

    ``accuracy`` is empty where it was not measured.
    """

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
    cuts = []
    for step in run.steps:
        recovery, accuracy = step.get("recovery", ""), step["accuracy"]
        cuts.append(
            Cut(
                block=block_of(step["group"]),
                group=inside(step["group"]),
                # A lossless cut before the policy's own has no rate.
                rate="lossless" if recovery.startswith("lossless") else f"{step['rate']:.0%}",
                channels=f"{_width(*step['before'])} to {_width(*step['after'])}",
                kept=kept_share(step),
                accuracy="" if accuracy is None else text_of(accuracy, images=run.images),
                saving=f"{step['saving']:.1%}",
                # Without the names of the layers that made up for the cut.
                recovery=re.sub(r" \([^)]*\)", "", recovery).partition(";")[0],
                detail=recovery,
            )
        )
    return cuts


def kept_share(step: Mapping[str, Any]) -> float:
    """The share of its channels that a group keeps.

    Example:
        >>> kept_share({"before": [4, 8], "after": [4, 2]})
        0.25
    """
    return float(step["after"][1]) / float(step["before"][1])


def _width(positions: int, size: int) -> str:
    return f"{positions} x {size}" if positions > 1 else str(size)


# The costs that are shown large, as far as they were measured: the first two of these.
LARGE = (
    "Time of a batch of 32",
    "Energy by operations",
    "Membrane potentials per image",
    "Peak activations per image",
)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Commands that load the pruned model, repeat the run, and apply its plan to another model."""

    load: str
    again: str
    apply: str


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a finished run, from nothing but the files of its folder.

    The page stands alone: no scripts, no network, one file. The same run gives the same bytes.

    Args:
        run_dir: a folder that ``primesvt prune`` has written, of this version or an older one.
        out: where to write; ``report.html`` in the run folder, when not given.

    Raises:
        ValueError: the folder holds no finished run, or a damaged file.
    """
    run = read_run(run_dir)
    with told_as_damage(run.path):
        page = _page(run)
    return write_text(run.path / "report.html" if out is None else out, page)


def _page(run: RunFiles) -> str:
    """The page of a run as HTML."""
    metrics, rows = run.metrics, changes(run.metrics)
    warning = "Choices were made on images the model was trained on: drops look too small there."
    return render(
        "report.html.j2",
        headline=headline(metrics),
        subtitle=f"{run.model} on {run.data}",
        met=metrics["met"],
        summary=summary(run),
        warnings=[warning] if metrics.get("selection_from_train") else [],
        tiles=_tiles(rows),
        outcome=[row for row in rows if row.part != "cost"],
        costs=[row for row in rows if row.part == "cost"],
        cost_notes=cost_notes(metrics["after"]),
        firing=firing_rates(metrics["before"], metrics["after"]),
        tuned=tuning(run),
        notes=[note for note in (metrics["data"], *metrics.get("notes", [])) if note],
        images=run.images,
        walk=walk_plot(run),
        robustness=robustness(run),
        blocks=block_sizes(run),
        cuts=plan_table(run),
        bounded=run.settings.get("gate") == "bound",
        cut_by_cut=all(step["accuracy"] is not None for step in run.steps),
        limit=metrics.get("limits", {}).get("max_accuracy_drop"),
        repeat=_repeat(run),
        asked=asked(run.recipe),
        text_of=text_of,
    )


def render(template: str, **content: Any) -> str:
    """Fill in a template of the package; a name that the template needs and lacks is an error."""
    return _templates().get_template(template).render(**content)


@cache
def _templates() -> Environment:
    """Made once, as compiling a template takes longer than filling it in."""
    return Environment(
        loader=PackageLoader("primesvt"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    """A value of a template without control characters; what a macro has made stays."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return shown(value, keep="\n\t")
    return value


def asked(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Every setting of a recipe as text, by its dotted name."""
    return {name: _plain(value) for name, value in flat(recipe)}


def _tiles(rows: Iterable[Change]) -> list[Change]:
    """The figures that are shown large: the accuracy or score, the memory, and what it costs."""
    rows = list(rows)
    quality = [row for row in rows if row.part == "quality" and row.change][:1]
    memory = [row for row in rows if row.measure == "Parameter memory"]
    costs = {row.measure: row for row in rows if row.part == "cost"}
    return [*memory, *quality, *[costs[name] for name in LARGE if name in costs][:2]]


def _repeat(run: RunFiles) -> Repeat:
    """Commands for this run; a module given in Python has to be given again."""
    folder = run.path.as_posix()
    named = run.recipe.get("model")
    quoted = shlex.quote(folder)
    into = "" if run.plan.get("config", True) else ", into=MyNet()"
    return Repeat(
        load=f"import primesvt\n\nmodel = primesvt.load({folder!r}{into})\n"
        "logits = model(images)  # [B, C, H, W] -> [B, classes]",
        again=f"primesvt prune --recipe {quoted}/recipe.yaml --out again" if named else "",
        apply=f"primesvt apply {quoted} {shlex.quote(str(named))} --out smaller" if named else "",
    )


def _plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return "none" if text in ("", None) else str(text)

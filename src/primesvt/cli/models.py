"""``primesvt models``: what there is to start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import table, whole
from primesvt.registry import FAMILIES

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Models"]


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models of the registry, with published accuracy and its source.

    examples:
      primesvt models                 all of them
      primesvt models 'sdt_v2_*_kd'   those with a distillation head
      primesvt models --json          for a script
    """

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GLOB")] = "*"
    """Only names that match this glob."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Print one row per model."""
        rows = _rows(self.pattern)
        if not rows:
            raise ValueError(f"no model matches {self.pattern!r}; `primesvt models` lists them all")
        console.result({"models": rows})
        sources = _sources(rows)
        console.say(_table(rows, sources))
        if sources:
            console.sentence("T: time steps. Top-1: published, percent, ImageNet-1K; read from")
        for source, letter in sources.items():
            console.sentence(f"  {letter}  {source}")
        console.sentence(_where_weights_are(rows))
        return 0


def _rows(pattern: str) -> list[dict[str, Any]]:
    """What is listed of the models that match; those of other packages are built to be counted."""
    text = files("primesvt").joinpath("models", "listing.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    if len(FAMILIES) > len(FAMILIES.builtin):
        from primesvt.models import listing

        rows += [row for row in listing() if row["family"] not in FAMILIES.builtin]
    return [row for row in rows if fnmatchcase(row["name"], pattern)]


def _sources(models: list[dict[str, Any]]) -> dict[str, str]:
    """A letter for every source of a published accuracy."""
    found = dict.fromkeys(row["published"]["source"] for row in models if row["published"])
    return dict(zip(found, ascii_lowercase, strict=False))


def _where_weights_are(models: list[dict[str, Any]]) -> str:
    bundled = [row["name"] for row in models if row["bundled"]]
    if not bundled:
        return "Weights: give the official checkpoint file in place of the name."
    return (
        f"Weights: bundled for {', '.join(bundled)}; for all others give the official checkpoint "
        "file in place of the name."
    )


def _table(models: list[dict[str, Any]], sources: dict[str, str]) -> Table:
    columns = ["Model", "Parameters", "Input", "Classes", "T", "Top-1"]
    rows = [
        (
            row["name"],
            whole(row["parameters"]),
            "x".join(map(str, row["input_size"])),
            whole(row["num_classes"]),
            str(row["time_steps"]),
            _top1(row["published"], sources),
        )
        for row in models
    ]
    made = table(columns, rows, right=[1, 3, 4, 5])
    made.collapse_padding = True  # else long names leave no room at 80 columns
    return made


def _top1(published: dict[str, Any] | None, sources: dict[str, str]) -> str:
    return f"{published['top1']} {sources[published['source']]}" if published else ""

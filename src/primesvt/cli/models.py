"""``primesvt models``: list the models of the registry."""

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
        # A list made beforehand is quick to read; models of other packages have to be built for it.
        text = files("primesvt").joinpath("models", "listing.json").read_text(encoding="utf-8")
        listed: list[dict[str, Any]] = json.loads(text)
        if len(FAMILIES) > len(FAMILIES.builtin):
            from primesvt.models import listing

            listed += [row for row in listing() if row["family"] not in FAMILIES.builtin]
        rows = [row for row in listed if fnmatchcase(row["name"], self.pattern)]
        if not rows:
            raise ValueError(f"no model matches {self.pattern!r}; `primesvt models` lists them all")
        console.result({"models": rows})
        found = dict.fromkeys(row["published"]["source"] for row in rows if row["published"])
        sources = dict(zip(found, ascii_lowercase, strict=False))
        console.say(_table(rows, sources))
        if sources:
            console.sentence("T: time steps. Top-1: published, percent, ImageNet-1K; read from")
        for source, letter in sources.items():
            console.sentence(f"  {letter}  {source}")
        bundled = ", ".join(row["name"] for row in rows if row["bundled"])
        some = f"bundled for {bundled}; for all others " if bundled else ""
        console.sentence(f"Weights: {some}give the official checkpoint file in place of the name.")
        return 0


def _table(models: list[dict[str, Any]], sources: dict[str, str]) -> Table:
    """A row per model, with a letter for the source of its published accuracy."""
    columns = ["Model", "Parameters", "Input", "Classes", "T", "Top-1"]
    rows = []
    for row in models:
        published = row["published"]
        cells = (
            row["name"],
            whole(row["parameters"]),
            "x".join(map(str, row["input_size"])),
            whole(row["num_classes"]),
            str(row["time_steps"]),
            f"{published['top1']} {sources[published['source']]}" if published else "",
        )
        rows.append(cells)
    made = table(columns, rows, right=[1, 3, 4, 5])
    made.collapse_padding = True  # else long names leave no room at 80 columns
    return made

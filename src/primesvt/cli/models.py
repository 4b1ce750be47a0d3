"""``primesvt models``: what there is to start from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import table, whole

if TYPE_CHECKING:
    from rich.table import Table

    from primesvt.models import ModelEntry

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
        from primesvt.models import list_models, model_entry

        rows = [_row(model_entry(name)) for name in list_models(self.pattern)]
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


def _row(entry: ModelEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "family": entry.family,
        "parameters": _parameters(entry),
        "input_size": list(entry.data.input_size),
        "num_classes": entry.config.num_classes,
        "time_steps": entry.config.time_steps,
        "published": entry.published and asdict(entry.published),
        "bundled": entry.weights is not None,
    }


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


@cache
def _parameters(entry: ModelEntry) -> int:
    import torch

    from primesvt.models import build_model

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(entry.config).parameters())

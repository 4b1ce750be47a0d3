"""``primesvt models``: what there is to start from."""

from __future__ import annotations

from dataclasses import dataclass
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
    """List the models of the registry.

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
        console.say(_table(rows))
        console.line("* Published ImageNet-1K accuracy (percent), measured under float16 autocast.")
        console.line("Where no weights are bundled, give the official checkpoint file instead.")
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
        "published_top1": entry.published and entry.published.top1,
        "bundled": entry.weights is not None,
    }


def _table(models: list[dict[str, Any]]) -> Table:
    columns = ["Model", "Parameters", "Input", "Classes", "T", "Top-1 *", "Weights"]
    rows = [
        (
            row["name"],
            whole(row["parameters"]),
            "x".join(map(str, row["input_size"])),
            whole(row["num_classes"]),
            str(row["time_steps"]),
            f"{row['published_top1']:.1f}" if row["published_top1"] else "",
            "bundled" if row["bundled"] else "",
        )
        for row in models
    ]
    return table(columns, rows, right=[1, 3, 4, 5])


def _parameters(entry: ModelEntry) -> int:
    import torch

    from primesvt.models import build_model

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(entry.config).parameters())

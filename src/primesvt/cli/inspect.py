"""``primesvt inspect``: what a model is made of, and what can be cut."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.overrides import parse_overrides
from primesvt.cli.tables import table, whole
from primesvt.text import megabytes

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from primesvt.channels import ChannelGroup

__all__ = ["Inspect", "tracing"]

LARGE = 5_000_000  # parameters from which a trace takes seconds


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show the layers of a model and the channel groups that can be cut.

    examples:
      primesvt inspect sdt_v2_digits
      primesvt inspect sdt_v2_digits --groups    every group as a sentence
      primesvt inspect 15M.pth --json            an official checkpoint, as JSON
      primesvt inspect gesture.pth --override time_steps=10 --override tau=1.5
    """

    model: flags.Model
    groups: bool = False
    """Print the channel groups as sentences instead of the table of layers."""
    time_steps: flags.TimeSteps = None
    family: flags.Family = None
    override: flags.Override = ()
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Trace the model and print layers or groups."""
        from primesvt.channels import trace
        from primesvt.checkpoint import open_model
        from primesvt.memory import inventory, parameter_count

        opened = open_model(
            self.model,
            time_steps=self.time_steps,
            pretrained=False,
            family=self.family,
            overrides=parse_overrides(self.override),
        )
        with tracing(console, opened.model):
            graph = trace(opened.model, opened.example())
        layers = [dataclasses.asdict(row) for row in inventory(opened.model, graph)]
        total = parameter_count(opened.model)
        console.result(
            {
                "model": self.model,
                "loaded": opened.loaded and opened.loaded.to_dict(),
                "parameters": total,
                "prunable_parameters": graph.touched(),
                "layers": layers,
                "groups": [_group(group) for group in graph],
            }
        )
        console.loaded(opened.loaded)
        if self.groups:
            for group in graph:
                console.sentence(str(group))
        else:
            console.say(_table(layers))
        free = graph.prunable()
        console.line(
            f"{self.model}: {total:,} parameters, {len(free)} prunable groups, which reach "
            f"{graph.touched() / total:.1%} of them"
        )
        return 0


@contextmanager
def tracing(console: Console, model: nn.Module) -> Iterator[None]:
    """Say how far the trace of a large model is: how many of its modules have been run."""
    from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    if sum(parameter.numel() for parameter in model.parameters()) < LARGE:
        yield
        return
    never_run = nn.ModuleList | SurrogateFunctionBase
    total = sum(not isinstance(module, never_run) for module in model.modules())
    done = itertools.count(1)
    with console.progress() as progress:
        progress("tracing", 0, total)
        hook = register_module_forward_hook(
            lambda *_: progress("tracing", min(next(done), total), total)
        )
        try:
            yield
        finally:
            hook.remove()


def _table(layers: list[dict[str, Any]]) -> Table:
    """Layers under the block they belong to, so that names stay short."""
    rows: list[tuple[str | Text, ...]] = []
    block = ""
    for row in layers:
        if _block(row["layer"]) != block:
            block = _block(row["layer"])
            rows.append((Text(block, style="bold"), "", "", ""))
        frees, group = megabytes(row["frees"]), Text(_inside(block, row["group"]))
        if not row["prunable"]:
            frees, group = "", Text(row["reason"].replace(f" {block}.", " "), style="dim")
        name = f"  {_inside(block, row['layer'])}"
        rows.append((name, whole(row["parameters"]), frees, group))
    columns = ["Layer", "Parameters", "Frees", "Prunable group, or why not"]
    return table(columns, rows, right=[1, 2], wrap=[0, 3])


def _block(layer: str) -> str:
    return ".".join(layer.split(".")[:-1][:2])


def _inside(block: str, name: str) -> str:
    return name.removeprefix(block).lstrip(".") if name.startswith(block) else name


def _group(group: ChannelGroup) -> dict[str, Any]:
    members = [dataclasses.asdict(member) for member in group.members]
    return {
        "name": group.name,
        "kind": group.kind,
        "size": group.size,
        "fronts": list(group.fronts),
        "status": group.status,
        "reason": group.reason,
        "prunable": group.prunable,
        "members": members,
    }

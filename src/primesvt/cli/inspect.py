"""``primesvt inspect``: what a model is made of, and what can be cut."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text

from primesvt._format import megabytes, scaled
from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import by_block, inside, table, whole
from primesvt.config import parse_overrides, unset

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from primesvt.channels import ChannelGroup
    from primesvt.checkpoint.load import OpenedModel
    from primesvt.data import Splits

__all__ = ["Inspect", "tracing"]


LARGE = 5_000_000  # parameters from which a trace takes seconds


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show the layers of a model, the channel groups that can be cut, and costs.

    examples:
      primesvt inspect sdt_v2_digits
      primesvt inspect sdt_v2_digits --groups    every group as a sentence
      primesvt inspect sdt_v2_digits --costs     potentials and MACs, by module
      primesvt inspect runs/sdt_v2_digits --costs --data digits --latency
      primesvt inspect 15M.pth --json            an official checkpoint, as JSON
      primesvt inspect gesture.pth --override time_steps=10 --override tau=1.5
      primesvt inspect --into mynet.model:MyNet --input-size 3,32,32
      primesvt inspect mynet.pth --into mynet.model:MyNet --input-size 3,32,32
    """

    model: Annotated[flags.Model, unset("MODEL")] = ""
    into: flags.Into = None
    input_size: flags.InputSize = None
    groups: bool = False
    """Print the channel groups as sentences instead of the table of layers."""
    costs: bool = False
    """Print what every layer and neuron costs instead, docs/costs.md says how it is counted."""
    data: Annotated[str | None, unset("DATA")] = None
    """With --costs: data to count spikes on, as for prune: firing rates, SynOps and energy."""
    latency: bool = False
    """Measure how long a forward pass takes, with one image and with 32 (a few seconds)."""
    time_steps: flags.TimeSteps = None
    family: flags.Family = None
    override: flags.Override = ()
    container: flags.Container = None
    key_map: flags.KeyMap = None
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Trace the model and print layers or groups."""
        from primesvt.channels import trace
        from primesvt.checkpoint.load import open_model
        from primesvt.cli.costs import count
        from primesvt.profiling.layers import inventory
        from primesvt.profiling.memory import parameter_count

        if self.into is not None:
            return self._own(console)
        if not self.model:
            raise ValueError("give a model to look at, or a class of your own with --into")
        opened = open_model(
            self.model,
            time_steps=self.time_steps,
            pretrained=False,
            family=self.family,
            container=self.container,
            key_map=self.key_map,
            overrides=parse_overrides(self.override),
        )
        opened, splits = self._on_data(opened, console)
        with tracing(console, opened.model):
            graph = trace(opened.model, opened.example())
        counted = count(opened, splits, latency=self.latency)
        macs = {module.module: module.macs for module in counted.operations.modules}
        layers = [
            {**dataclasses.asdict(row), "macs": macs.get(row.layer)}
            for row in inventory(opened.model, graph)
        ]
        total = parameter_count(opened.model)
        console.result(
            {
                "model": self.model,
                "loaded": opened.loaded and opened.loaded.to_dict(),
                "parameters": total,
                "prunable_parameters": graph.touched(),
                "layers": layers,
                "groups": [_group(group) for group in graph],
                "costs": counted.to_dict(),
            }
        )
        console.loaded(opened.loaded)
        if self.groups:
            for group in graph:
                console.sentence(str(group))
        elif self.costs:
            console.say(counted.table(opened.model))
        else:
            console.say(_table(layers))
        free = graph.prunable()
        console.line(
            f"{self.model}: {total:,} parameters, {len(free)} prunable groups, which reach "
            f"{graph.touched() / total:.1%} of them"
        )
        for sentence in counted.sentences(modules=self.costs):
            console.sentence(sentence)
        return 0

    def _own(self, console: Console) -> int:
        """Trace a network of the user's own, check every cut, and print what came of it."""
        from primesvt.channels import trace, verify
        from primesvt.channels.rewriting import describe_rewrites, rewrite_notes
        from primesvt.checkpoint.own_model import open_own_model
        from primesvt.profiling.memory import parameter_count

        assert self.into is not None
        own = open_own_model(self.into, self.model or None, self.input_size)
        example = tuple(each[:2] for each in own.inputs)
        with tracing(console, own.model):
            graph = trace(own.model, example)
        with console.progress() as progress:
            refusals = verify(
                own.model, graph, progress=lambda done, total: progress("checking", done, total)
            )
        refused = {refusal.group: str(refusal) for refusal in refusals}
        exact = [g for g in graph if g.status == "free" and g.name not in refused]
        total = parameter_count(own.model)
        notes = rewrite_notes(graph.rewrites)
        console.result(
            {
                "model": self.into,
                "parameters": total,
                "prunable_parameters": graph.touched(g for g in exact if g.kind == "channel"),
                "groups": [_group(group) for group in graph],
                "refused": refused,
                "rewrites": describe_rewrites(graph.rewrites, graph.sizes),
                "notes": [*graph.notes, *notes],
                "unread": list(graph.unread),
            }
        )
        for group in graph:
            console.sentence(refused.get(group.name) or str(group))
        for note in (*graph.notes, *notes):
            console.sentence(note)
        if graph.unread:
            console.sentence(f"Read by no forward: {', '.join(graph.unread)}.")
        channels = [g for g in exact if g.kind == "channel"]
        console.line(
            f"{self.into}: {total:,} parameters; {len(channels)} prunable groups reach "
            f"{graph.touched(channels) / total:.1%} of them, with streams "
            f"{graph.touched(g for g in exact if g.kind != 'heads') / total:.1%}; "
            f"{len(refused)} groups refused"
        )
        return 0

    def _on_data(self, opened: OpenedModel, console: Console) -> tuple[OpenedModel, Splits | None]:
        """The data to count spikes on, and the model with guessed settings tried on them."""
        if self.data is None:
            return opened, None
        if not self.costs:
            raise ValueError("--data is what --costs counts spikes on; give both")
        from primesvt.checkpoint.load import own_data, splits_for
        from primesvt.evaluation.settings import find_settings

        splits = splits_for(opened.model, self.data, own=own_data(self.model))
        with console.progress() as progress:
            model = find_settings(opened.model, splits, progress=progress)
        return dataclasses.replace(opened, model=model), splits


@contextmanager
def tracing(console: Console, model: nn.Module) -> Iterator[None]:
    """Show how far the trace of a large model is, by how many of its modules have been run."""
    from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    from primesvt.models.forward import hooked

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
        with hooked([hook]):
            yield


def _table(layers: list[dict[str, Any]]) -> Table:
    """The table of layers, each under its block, so that names stay short."""
    rows: list[tuple[str | Text, ...]] = []
    for block, row in by_block(layers, "layer"):
        if row is None:
            rows.append((Text(block, style="bold"), "", "", "", ""))
            continue
        frees, group = megabytes(row["frees"]), Text(inside(block, row["group"]))
        if not row["prunable"]:
            frees, group = "", Text(row["reason"].replace(f" {block}.", " "), style="dim")
        macs = "" if row["macs"] is None else scaled(row["macs"])
        name = f"  {inside(block, row['layer'])}"
        rows.append((name, whole(row["parameters"]), macs, frees, group))
    columns = ["Layer", "Parameters", "MACs", "Frees", "Prunable, or why not"]
    return table(columns, rows, right=[1, 2, 3], wrap=[0, 4])


def _group(group: ChannelGroup) -> dict[str, Any]:
    """A channel group as plain values, for JSON."""
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

"""``primesvt inspect``: what a model is made of, and what can be cut."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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

    from primesvt.channels import ChannelGraph, ChannelGroup, Refusal
    from primesvt.checkpoint.load import OpenedModel
    from primesvt.data import Splits

__all__ = ["Inspect", "tracing"]


_OF_FAMILIES = ("costs", "data", "latency", "time_steps", "family", "override")
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
        if self.input_size is not None:
            raise ValueError("--input-size goes with --into, a class of your own")
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
        from primesvt.checkpoint.own_model import open_own_model
        from primesvt.profiling.memory import parameter_count

        asked = {name: getattr(self, name) for name in _OF_FAMILIES}
        for name in (name for name, value in asked.items() if value):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is for models of the registry: leave it out with --into")
        own = open_own_model(
            str(self.into),
            self.model or None,
            self.input_size,
            container=self.container,
            key_map=self.key_map,
        )
        with tracing(console, own.model):
            graph = trace(own.model, tuple(each[:2] for each in own.inputs))
        with console.progress() as progress:
            refusals = verify(own.model, graph, progress=partial(progress, "checking"))
        self._say(console, graph, refusals, parameter_count(own.model))
        return 0

    def _say(
        self, console: Console, graph: ChannelGraph, refusals: list[Refusal], total: int
    ) -> None:
        """Print every group of the user's network, what is rewritten, and how much can be cut."""
        from primesvt.channels.rewriting import rewrite_notes

        refused = {refusal.group: str(refusal) for refusal in refusals}
        exact = [g for g in graph if g.status == "free" and g.name not in refused]
        channels = [g for g in exact if g.kind == "channel"]
        streams = [g for g in exact if g.kind == "stream"]
        notes = [*graph.notes, *rewrite_notes(graph.rewrites)]
        if graph.unread:
            notes.append(f"Read by no forward: {', '.join(graph.unread)}.")
        console.result(
            {
                "model": self.into,
                "parameters": total,
                "prunable_parameters": graph.touched(channels),
                "groups": [_group(group) for group in graph],
                "refused": refused,
                "rewrites": [str(rewrite) for rewrite in graph.rewrites],
                "notes": notes,
                "unread": list(graph.unread),
            }
        )
        for group in graph:
            name = group.name
            console.sentence(f"refused: {refused[name]}" if name in refused else str(group))
        for note in notes:
            console.sentence(note)
        shares = [graph.touched(found) / max(total, 1) for found in (channels, channels + streams)]
        console.line(
            f"{self.into}: {total:,} parameters; {len(channels)} prunable groups reach "
            f"{shares[0]:.1%} of them, with streams {shares[1]:.1%}; {len(refused)} refused"
        )

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

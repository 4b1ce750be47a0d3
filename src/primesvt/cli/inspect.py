"""``primesvt inspect``: what a model is made of, and what can be cut."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from torch import nn

from primesvt._format import megabytes, scaled
from primesvt.calibration import calibration_of
from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import by_block, inside, table, whole
from primesvt.config import parse_overrides, unset
from primesvt.profiling.energy import PRICES, Energy, energy_of
from primesvt.profiling.memory import file_bytes, parameter_bytes
from primesvt.profiling.operations import ModuleCosts, Operations, count_operations
from primesvt.profiling.timing import Latency, measure
from primesvt.report.changes import cost_notes

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from primesvt.channels import ChannelGroup
    from primesvt.checkpoint.load import OpenedModel
    from primesvt.data import Splits

__all__ = ["Counted", "Inspect", "count", "tracing"]


_OF_SPIKES = ("synops", "rate", "firing_rate", "operand_bytes")
_EMPTY = ("",) * 6


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a model costs; ``energy`` and figures of spikes only where real images were run."""

    operations: Operations
    energy: Energy | None
    file_bytes: int
    latency: tuple[Latency, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those of spikes ``None`` where no image was run."""
        operations = asdict(self.operations)
        for row in (operations, *operations["modules"]) if self.energy is None else ():
            row.update({name: None for name in _OF_SPIKES if name in row})
        return {
            "file_bytes": self.file_bytes,
            "membrane_bytes_per_sample": self._membranes,
            "operations": operations,
            "energy": self.energy and asdict(self.energy),
            "latency": [asdict(each) for each in self.latency],
        }

    def table(self, model: nn.Module) -> Table:
        """Layers, products and neurons under their blocks, in the order in which they run."""
        parameters = {
            name: sum(p.numel() for p in module.parameters(recurse=False))
            for name, module in model.named_modules()
        }
        rows: list[tuple[str | Text, ...]] = []
        found = [{"module": each.module, "costs": each} for each in self.operations.modules]
        for block, row in by_block(found, "module"):
            if row is None:
                rows.append((Text(block, style="bold"), *_EMPTY))
            else:
                cells = self._cells(row["costs"], parameters.get(row["module"], 0))
                rows.append((f"  {inside(block, row['module']) or '(itself)'}", *cells))
        columns = ["Module", "Params", "Membrane", "MACs", "Rate", "SynOps", "Energy"]
        return table(columns, rows, right=range(1, 7), wrap=[0])

    def sentences(self, *, modules: bool) -> Iterator[str]:
        """Totals, and how they were counted and measured; without ``modules``, in short."""
        counted = self.operations
        yield (
            f"{scaled(counted.macs)} MACs per image ({scaled(counted.multiplied)} of real numbers),"
            f" {megabytes(self._membranes)} of potentials, {megabytes(self.file_bytes)} on the disk"
        )
        if self.energy is not None:
            yield (
                f"{scaled(counted.synops)} SynOps per image, firing rate"
                f" {counted.firing_rate or 0:.1%}; {scaled(self.energy.operations, 'J')} by"
                f" operations, {scaled(self.energy.with_memory, 'J')} with memory"
            )
        elif modules:
            yield "Firing rates, SynOps and energy need images: give --data."
        for each in self.latency:
            yield f"{scaled(each.milliseconds / 1e3, 's')} for a batch of {each.batch}"
        told = self.to_dict()
        yield from cost_notes({"latency": told["latency"]} if self.energy is None else told)

    @property
    def _membranes(self) -> int:
        return sum(module.membrane_bytes for module in self.operations.modules)

    def _cells(self, costs: ModuleCosts, parameters: int) -> tuple[str, ...]:
        picojoules = PRICES.mac * costs.multiplied + PRICES.accumulate * costs.synops
        seen = self.energy is not None
        return (
            scaled(parameters) if parameters else "",
            megabytes(costs.membrane_bytes) if costs.membrane_bytes else "",
            scaled(costs.macs) if costs.macs else "",
            f"{costs.rate:.1%}" if seen and costs.rate is not None else "",
            scaled(costs.synops) if seen and costs.synops else "",
            scaled(1e-12 * picojoules, "J") if seen and costs.macs else "",
        )


def count(opened: OpenedModel, splits: Splits | None, *, latency: bool) -> Counted:
    """Count on calibration images, or on one random image where there are none."""
    model, example = opened.model, (opened.example(),)
    inputs: Any = [(example[0][:1],)] if splits is None else calibration_of(splits.calibration)
    operations = count_operations(model, inputs)
    return Counted(
        operations=operations,
        energy=None if splits is None else energy_of(operations, parameter_bytes(model)),
        file_bytes=file_bytes(model),
        latency=measure({"model": model}, example)["model"] if latency else (),
    )


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
    """

    model: flags.Model
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
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Trace the model and print layers or groups."""
        from primesvt.channels import trace
        from primesvt.checkpoint.load import open_model
        from primesvt.profiling.layers import inventory
        from primesvt.profiling.memory import parameter_count

        opened = open_model(
            self.model,
            time_steps=self.time_steps,
            pretrained=False,
            family=self.family,
            overrides=parse_overrides(self.override),
        )
        with tracing(console, opened.model):
            graph = trace(opened.model, opened.example())
        counted = self._counted(opened)
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

    def _counted(self, opened: OpenedModel) -> Counted:
        """What the model costs: on images where there are any, on one random image otherwise."""
        from primesvt.checkpoint.load import own_data, splits_for
        from primesvt.cli.inspect import count

        if self.data is not None and not self.costs:
            raise ValueError("--data is what --costs counts spikes on; give both")
        splits = None
        if self.data is not None:
            splits = splits_for(opened.model, self.data, own=own_data(self.model))
        return count(opened, splits, latency=self.latency)


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

"""Count and measure what a model costs, and print it as a table and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text
from torch import nn

from primesvt._format import megabytes, scaled
from primesvt.calibration import calibration_of
from primesvt.cli.tables import by_block, inside, table
from primesvt.profiling.energy import PRICES, Energy, energy_of
from primesvt.profiling.memory import file_bytes, parameter_bytes
from primesvt.profiling.operations import ModuleCosts, Operations, count_operations
from primesvt.profiling.timing import Latency, measure
from primesvt.report.changes import NOT_COUNTED, cost_notes

if TYPE_CHECKING:
    from rich.table import Table

    from primesvt.checkpoint.load import OpenedModel
    from primesvt.data import Splits

__all__ = ["Counted", "count"]


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
        spikes = self.energy is not None
        for block, row in by_block(found, "module"):
            if row is None:
                rows.append((Text(block, style="bold"), *_EMPTY))
                continue
            costs: ModuleCosts = row["costs"]
            own = parameters.get(row["module"], 0)
            picojoules = PRICES.mac * costs.multiplied + PRICES.accumulate * costs.synops
            cells = (
                scaled(own) if own else "",
                megabytes(costs.membrane_bytes) if costs.membrane_bytes else "",
                scaled(costs.macs) if costs.macs else "",
                f"{costs.rate:.1%}" if spikes and costs.rate is not None else "",
                scaled(costs.synops) if spikes and costs.synops else "",
                scaled(1e-12 * picojoules, "J") if spikes and costs.macs else "",
            )
            rows.append((f"  {inside(block, row['module']) or '(itself)'}", *cells))
        columns = ["Module", "Params", "Membrane", "MACs", "Rate", "SynOps", "Energy"]
        return table(columns, rows, right=range(1, 7), wrap=[0])

    def sentences(self, *, modules: bool) -> Iterator[str]:
        """Totals, and how they were counted and measured; without ``modules``, in short."""
        counted = self.operations
        yield (
            f"{scaled(counted.macs)} MACs per image ({scaled(counted.multiplied)} of real numbers),"
            f" {_known(self._membranes, megabytes)} of potentials,"
            f" {megabytes(self.file_bytes)} on the disk"
        )
        if self.energy is not None:
            yield (
                f"{scaled(counted.synops)} SynOps per image, firing rate"
                f" {counted.firing_rate or 0:.1%}; {scaled(self.energy.operations, 'J')} by"
                f" operations, {_known(self.energy.with_memory, _joules)} with memory"
            )
        elif modules:
            yield "Firing rates, SynOps and energy need images: give --data."
        for each in self.latency:
            yield f"{scaled(each.milliseconds / 1e3, 's')} for a batch of {each.batch}"
        costs = self.to_dict()
        yield from cost_notes({"latency": costs["latency"]} if self.energy is None else costs)

    @property
    def _membranes(self) -> int | None:
        if self.operations.state_bytes is None:
            return None
        return sum(module.membrane_bytes for module in self.operations.modules)


def _joules(energy: float) -> str:
    return scaled(energy, "J")


def _known(value: Any, show: Callable[[Any], str]) -> str:
    return NOT_COUNTED if value is None else show(value)


def count(opened: OpenedModel, splits: Splits | None, *, latency: bool) -> Counted:
    """Count what a model costs, on calibration images or else on one random image."""
    model, example = opened.model, (opened.example(),)
    inputs: Any = [(example[0][:1],)] if splits is None else calibration_of(splits.calibration)
    operations = count_operations(model, inputs)
    return Counted(
        operations=operations,
        energy=None if splits is None else energy_of(operations, parameter_bytes(model)),
        file_bytes=file_bytes(model),
        latency=measure({"model": model}, example)["model"] if latency else (),
    )

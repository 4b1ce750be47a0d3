"""Measure how robust each layer is: cut alone, at several pruning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup
from primesvt.channels.widths import WidthGrid, Widths, widths
from primesvt.config import Method
from primesvt.profiling.layers import group_parameters
from primesvt.pruning.probe_table import Layer, Point, Probe, ProbeTable

__all__ = ["check_probed", "find_edges", "probe_layers", "unprobed", "width_grids"]


class LayerProbe(Protocol):
    """The part of a prober that measures layers cut alone."""

    def probes(
        self, wanted: Sequence[Widths], *, tell: Callable[[int, int], None] = lambda *_: None
    ) -> list[Probe]: ...

    def tell(self, stage: str, done: int, total: int) -> None: ...


def width_grids(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    *,
    rates: Sequence[float],
    order: str = Method.model_fields["order"].default,
    multiple: int = 1,
) -> tuple[WidthGrid, ...]:
    """The widths of every group at the rates, multiples of ``multiple``; nothing is measured.

    ``order`` says which parameters make a layer large: of the producing layers (``producer``), or
    of all members (``group``).
    """
    members = order == "group"
    return tuple(
        WidthGrid(
            group=group.name,
            positions=group.positions,
            size=group.size,
            parameters=group_parameters(model, graph, group, members=members),
            widths=widths(group.size, rates, multiple),
            rates=tuple(rates),
        )
        for group in groups
    )


def probe_layers(prober: LayerProbe, grids: Sequence[WidthGrid]) -> tuple[Layer, ...]:
    """Probe every group alone on the unpruned network, at all its widths.

    Rates that give equal widths share one probe.
    """
    wanted = [{grid.group: kept} for grid in grids for kept in grid.widths]
    probes = iter(prober.probes(wanted, tell=partial(prober.tell, "probing")))
    return tuple(
        Layer(
            group=grid.group,
            positions=grid.positions,
            size=grid.size,
            parameters=grid.parameters,
            points=tuple(
                Point(rate=rate, kept=kept, probe=next(probes))
                for kept, rate in grid.widths.items()
            ),
        )
        for grid in grids
    )


def find_edges(
    prober: LayerProbe, grids: Sequence[WidthGrid], *, passes: Callable[[Probe], bool]
) -> tuple[Layer, ...]:
    """Find the highest rate at which every group, cut alone, passes, by halving.

    That takes for granted that accuracy falls with the rate.

    All groups are probed side by side, one rate each in a round, the highest one first. Rates below
    one that passes count as passing and are not measured; of those that do not pass, the layer
    keeps what was measured.
    """
    between = {grid.group: (0, len(grid.widths)) for grid in grids}
    total, done = sum(len(grid.widths).bit_length() for grid in grids), 0

    def tell(known: int, _: int) -> None:
        prober.tell("probing", done + known, max(done + known, total))

    measured: dict[tuple[str, int], Probe] = {}
    while any(low < high for low, high in between.values()):
        asked = [grid for grid in grids if between[grid.group][0] < between[grid.group][1]]
        # Most groups alone can take the highest rate, so the first round asks for that.
        middle = {
            grid.group: (
                between[grid.group][1] - 1 if not measured else sum(between[grid.group]) // 2
            )
            for grid in asked
        }
        cuts = [{grid.group: list(grid.widths)[middle[grid.group]]} for grid in asked]
        for grid, probe in zip(asked, prober.probes(cuts, tell=tell), strict=True):
            low, high = between[grid.group]
            place = middle[grid.group]
            measured[grid.group, list(grid.widths)[place]] = probe
            between[grid.group] = (place + 1, high) if passes(probe) else (low, place)
        done += len(asked)
    return tuple(_up_to(grid, between[grid.group][0], measured) for grid in grids)


def unprobed(grids: Sequence[WidthGrid]) -> tuple[Layer, ...]:
    """Layers with their pruning rates but without probes, for policies that need none."""
    return tuple(_up_to(grid, len(grid.widths), {}) for grid in grids)


def _up_to(grid: WidthGrid, edge: int, measured: Mapping[tuple[str, int], Probe]) -> Layer:
    """A layer with its rates below ``edge`` in number, and those beyond that were measured."""
    points = [
        Point(rate=rate, kept=kept, probe=measured.get((grid.group, kept)))
        for kept, rate in grid.widths.items()
    ]
    return Layer(
        group=grid.group,
        positions=grid.positions,
        size=grid.size,
        parameters=grid.parameters,
        points=tuple(p for n, p in enumerate(points) if n < edge or p.probe is not None),
    )


def check_probed(
    table: ProbeTable,
    groups: Sequence[ChannelGroup],
    rates: Sequence[float],
    multiple: int = 1,
) -> None:
    """Raise ``ValueError`` naming the first layer probe that a table lacks."""
    for group in groups:
        for kept, rate in widths(group.size, rates, multiple).items():
            if table.find({group.name: kept}) is None:
                raise ValueError(
                    f"{table.name} has no probe of {group.name} at rate {rate:g}, and solving "
                    "again makes no new one; let that run finish, ask for its groups and rates, "
                    "or run it with full_curves"
                )

"""Time that narrower channel groups save, each alone, and the time of whole pruned networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from primesvt.channels import ChannelGraph, remove_channels
from primesvt.channels.widths import Widths, first_channels
from primesvt.models import SpikingViT, reset
from primesvt.models.digest import model_digest
from primesvt.models.forward import evaluating, hooked
from primesvt.profiling.latency_table import LatencyTable, NetworkTime, PartTime, WidthTime
from primesvt.profiling.timing import (
    Pace,
    Seconds,
    batched,
    device_of,
    machine_of,
    placed,
    race_networks,
    steady_clock,
)

__all__ = ["FileTimer", "Stopwatch"]

WIDTHS, NETWORKS = Pace(seconds=1.5, least=7), Pace(seconds=5.0, least=11)
POINTS = 5  # widths of a group that are timed, and the full one; others lie on the line between
FEW = 3  # of them, where each has to be exported
Tell = Callable[[int, int], None]
Parts = Mapping[str, tuple[nn.Module, tuple[Any, ...]]]


class FileTimer(Protocol):
    """Times parts of networks as exported files in the runtime of its name."""

    runtime: str

    def race(self, parts: Parts, pace: Pace) -> dict[str, Seconds]:
        """Seconds of every part on its inputs, in every round."""
        ...


class Stopwatch:
    """Times parts of a network at several widths, and whole cut networks, all in turn.

    What a group saves alone is timed on the block that holds it, against the whole block in the
    same rounds, so that other load meets both; a narrower width saves no less than a wider one.
    Savings of groups are added up. Where groups share a layer that is too good, so plans are timed
    as a whole before they count.

    Args:
        model: the unpruned network; never changed.
        graph: its channel graph.
        widths: group -> channels it may keep at each position.
        inputs: as the model takes them; repeated or shortened to ``batch``.
        batch: samples per forward pass.
        table: what was timed before; keeps what is timed now.
        widths_pace, networks_pace: how long to measure.
        files: times exported files of networks in another runtime, instead of modules in PyTorch.
        on_main: runs a measurement; of several processes, on one of them, for all.
        tell: hears how many groups are known.

    Source: tables of latency per layer width as in Yang et al., "NetAdapt" (arXiv 1804.03230).
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        *,
        widths: Mapping[str, Iterable[int]],
        inputs: tuple[Any, ...],
        batch: int,
        table: LatencyTable,
        widths_pace: Pace = WIDTHS,
        networks_pace: Pace = NETWORKS,
        files: FileTimer | None = None,
        on_main: Callable[[Callable[[], Any]], Any] = lambda work: work(),
        tell: Tell = lambda *_: None,
    ) -> None:
        self.model, self.graph, self.table, self.batch = model, graph, table, batch
        points = POINTS if files is None else FEW
        self.widths = {name: _spread(kept, points) for name, kept in widths.items()}
        self._files = files
        self.inputs = batched(inputs, batch)
        self._on_main, self._tell = on_main, tell
        self._curves: dict[str, tuple[list[int], list[float]]] = {}
        self.parts = _parts(model)
        device = device_of(model) if files is None else torch.device("cpu")
        name, clock = steady_clock(device)
        self._paces = replace(widths_pace, clock=clock), replace(networks_pace, clock=clock)
        context = {
            "machine": machine_of(device),
            "device": device.type,
            "clock": name,
            "threads": torch.get_num_threads(),
            "batch": batch,
            "model": model_digest(model),
            "runtime": "pytorch" if files is None else files.runtime,
        }
        table.begin(on_main(lambda: context))

    @property
    def whole(self) -> PartTime:
        """Time of the unpruned network."""
        return self._part("")

    def saved(self, cuts: Widths) -> float:
        """Milliseconds that cuts save: what each group saves alone, added up."""
        total = 0.0
        for group, kept in cuts.items():
            if group not in self._curves:
                self._curves[group] = self._curve(group)
                self._tell(len(self._curves), len(self.widths))
            places, savings = self._curves[group]
            total += float(np.interp(kept, places, savings))
        return total

    def network(self, cuts: Widths) -> NetworkTime:
        """Time of a pruned network, measured if it is not in the table."""
        if not cuts:
            return NetworkTime(cuts={}, share=1.0, low=1.0, high=1.0, runs=0)
        known = self.table.network(cuts)
        if known is None:
            known = self._on_main(lambda: self._time_network(cuts))
            self.table.add(known)
        return known

    def _curve(self, group: str) -> tuple[list[int], list[float]]:
        """Widths, ascending, and milliseconds that each saves: no less than any wider one."""
        part, wanted = self._part_of(group), self.widths[group]
        if any(self.table.width(group, kept) is None for kept in wanted):
            for row in self._on_main(lambda: self._time_widths(group, part, wanted)):
                self.table.add(row)
        from sklearn.isotonic import isotonic_regression

        rows = [self.table.width(group, kept) for kept in wanted]
        shares = [1 - row.share for row in rows if row is not None]
        rising = isotonic_regression([0.0, *shares], y_min=0.0)
        savings = self._time_of(part) * rising[::-1]
        return [self.graph[group].size, *wanted][::-1], savings.tolist()

    def _time_of(self, part: str) -> float:
        """Milliseconds of a part, scaled so that all parts add up to the network's time."""
        if not part:
            return self.whole.milliseconds
        total = sum(self._part(name).milliseconds for name in self.parts)
        return self._part(part).milliseconds * self.whole.milliseconds / total

    def _part(self, name: str) -> PartTime:
        if self.table.part(name) is None:
            for row in self._on_main(self._time_parts):
                self.table.add(row)
        found = self.table.part(name)
        assert found is not None
        return found

    def _part_of(self, group: str) -> str:
        """The block that holds all members of a group; the whole network where none does."""
        names = [member.module for member in self.graph[group].members]
        for part in self.parts:
            if all(name == part or name.startswith(f"{part}.") for name in names):
                return part
        return ""

    def _time_parts(self) -> list[PartTime]:
        """The network and every part of it, in turn."""
        names = ("", *self.parts)
        parts = {n: (self.model.get_submodule(n), self._entering(n)) for n in names}
        times = self._race(parts, self._paces[1])
        return [
            PartTime(part=name, milliseconds=1e3 * _quick(seconds), runs=len(seconds))
            for name, seconds in times.items()
        ]

    def _time_widths(self, group: str, part: str, widths: Sequence[int]) -> list[WidthTime]:
        """A part of the network, whole and with one group at several widths."""
        inputs = self._entering(part)
        networks = {kept: self._cut({group: kept}) for kept in widths}
        parts = {f"{kept}": (cut.get_submodule(part), inputs) for kept, cut in networks.items()}
        parts["whole"] = (self.model.get_submodule(part), inputs)
        times = self._race(parts, self._paces[0])
        whole = times.pop("whole")
        return [
            WidthTime(
                group=group,
                kept=int(kept),
                part=part,
                share=_quick(seconds) / _quick(whole),
                runs=len(seconds),
            )
            for kept, seconds in times.items()
        ]

    def _time_network(self, cuts: Widths) -> NetworkTime:
        parts = {"whole": (self.model, self.inputs), "cut": (self._cut(cuts), self.inputs)}
        times = self._race(parts, self._paces[1])
        low, high = np.quantile(times["cut"] / times["whole"], (0.25, 0.75))
        return NetworkTime(
            cuts=dict(cuts),
            share=_quick(times["cut"]) / _quick(times["whole"]),
            low=float(low),
            high=float(high),
            runs=len(times["cut"]),
        )

    def _race(self, parts: Parts, pace: Pace) -> dict[str, Seconds]:
        """Seconds of networks, or parts of one, in turn."""
        return race_networks(parts, pace) if self._files is None else self._files.race(parts, pace)

    def _cut(self, cuts: Widths) -> nn.Module:
        """A pruned copy that keeps the first channels, as only their number matters for time."""
        smaller = copy.deepcopy(self.model)
        remove_channels(smaller, self.graph, first_channels(self.graph, cuts))
        return smaller

    def _entering(self, part: str) -> tuple[Any, ...]:
        """The inputs of a part of the network."""
        if not part:
            return self.inputs
        inputs: list[tuple[Any, ...]] = []

        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.append(args)

        hook = self.model.get_submodule(part).register_forward_pre_hook(note)
        try:
            with hooked([hook]), evaluating(self.model):
                reset(self.model)
                self.model(*placed(self.inputs, device_of(self.model)))
        finally:
            reset(self.model)
        return inputs[0]


def _parts(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks and the head of a network; none where its forward is not ours."""
    if not isinstance(model, SpikingViT) or type(model).forward is not SpikingViT.forward:
        return ()
    return (*(f"blocks.{name}" for name, _ in model.blocks.named_children()), "head")


def _spread(widths: Iterable[int], points: int = POINTS) -> list[int]:
    """A few of the widths, from wide to narrow, the first and the last among them.

    Example:
        >>> _spread(range(10))
        [9, 7, 5, 2, 0]
    """
    ordered = sorted(widths, reverse=True)
    places = np.linspace(0, len(ordered) - 1, min(points, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _quick(seconds: Seconds) -> float:
    """The lower quartile."""
    return float(np.quantile(seconds, 0.25))

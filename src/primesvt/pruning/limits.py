"""Limits on time and on membrane potentials: what cuts save of them, and whether they hold."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from primesvt.channels import ChannelGraph, remove_channels
from primesvt.channels.widths import Widths, first_channels, widths
from primesvt.config import Limits, Method, PruneConfig
from primesvt.distributed import SINGLE_PROCESS, ProcessGroup
from primesvt.evaluation.evaluator import Progress
from primesvt.exporting.onnx_timing import Files
from primesvt.profiling.latency_table import LatencyTable
from primesvt.profiling.limits import LimitOutcome
from primesvt.profiling.memory import membrane_bytes
from primesvt.profiling.timing import batched, device_of, placed
from primesvt.profiling.width_latency import Stopwatch
from primesvt.pruning.lossless import StartNetwork

__all__ = [
    "LatencyLimit",
    "LimitOutcome",
    "MembraneLimit",
    "limit_notes",
    "limits_of",
]


@dataclass(frozen=True, kw_only=True)
class LatencyLimit:
    """A limit on the time of a forward pass, in milliseconds."""

    stopwatch: Stopwatch
    limits: Limits

    @property
    def name(self) -> str:
        return "latency"

    @property
    def needed(self) -> float:
        """Milliseconds to save."""
        return self._before - self._allowed

    def saved(self, cuts: Widths) -> float:
        """Milliseconds that the cuts save, estimated as the sum of each group's own saving."""
        return self.stopwatch.saved(cuts)

    def proved(self, cuts: Widths) -> float:
        """Milliseconds that the cuts save, by timing the cut network against the whole one."""
        return self._before * (1 - self.stopwatch.network(cuts).share)

    def at(self, cuts: Widths) -> LimitOutcome:
        """What the limited quantity is before and after a plan's cuts, and whether it holds."""
        after = self._before - self.proved(cuts)
        return LimitOutcome(
            name=self.name,
            before=self._before,
            after=after,
            allowed=self._allowed,
            batch=self.stopwatch.batch,
        )

    @property
    def _before(self) -> float:
        return self.stopwatch.whole.milliseconds

    @property
    def _allowed(self) -> float:
        found = self.limits.allowed_milliseconds(self._before)
        assert found is not None
        return found


@dataclass(frozen=True, kw_only=True)
class MembraneLimit:
    """A limit on the memory of membrane potentials, in bytes per sample.

    Every channel of a group has as many potentials as any other, so one cut of a group tells what
    all of them save.

    Args:
        model: the unpruned network; never changed.
        graph: its channel graph.
        example: inputs to run.
        allowed: the most bytes per sample.
    """

    model: nn.Module
    graph: ChannelGraph
    example: tuple[Any, ...] = field(repr=False)
    allowed: int
    _known: dict[frozenset[tuple[str, int]], int] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return "membrane"

    @property
    def needed(self) -> float:
        """Bytes to save."""
        return self._bytes({}) - self.allowed

    def saved(self, cuts: Widths) -> float:
        """Bytes that the cuts save, estimated as the sum of each group's own saving."""
        total, whole = 0.0, self._bytes({})
        for group, kept in cuts.items():
            size = self.graph[group].size
            half = size // 2
            if half > 0:  # every channel of a group has as many potentials: half of them tell
                total += (whole - self._bytes({group: half})) / (size - half) * (size - kept)
        return total

    def proved(self, cuts: Widths) -> float:
        """Bytes that the cuts save, by running the cut network once."""
        return self._bytes({}) - self._bytes(cuts)

    def at(self, cuts: Widths) -> LimitOutcome:
        """What the limited quantity is before and after a plan's cuts, and whether it holds."""
        return LimitOutcome(
            name=self.name,
            before=self._bytes({}),
            after=self._bytes(cuts),
            allowed=self.allowed,
        )

    def _bytes(self, cuts: Widths) -> int:
        """Bytes of potentials per sample of the cut network, which is run once."""
        key = frozenset(cuts.items())
        if key not in self._known:
            smaller = copy.deepcopy(self.model)
            remove_channels(smaller, self.graph, first_channels(self.graph, cuts))
            found = membrane_bytes(smaller, self.example)
            if found is None:
                raise ValueError(
                    "the membrane potentials of this network are not counted, as its neurons are of"
                    " an unknown class; leave out the limit on them (max_membrane)"
                )
            self._known[key] = found
        return self._known[key]


def limits_of(
    config: PruneConfig,
    start: StartNetwork,
    *,
    inputs: tuple[Any, ...],
    table: LatencyTable,
    processes: ProcessGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> tuple[LatencyLimit | MembraneLimit, ...]:
    """The limits on latency and membrane memory that were asked for, ready to be measured.

    Args:
        config: the limits, and the rates of the groups.
        start: the network to prune, and its groups.
        inputs: a batch of inputs; the first for potentials, as many as are asked for to time.
        table: times taken before.
        processes: those that ask; the main one takes the times.
        progress: called as ``progress(stage, done, total)``.
    """
    found: list[LatencyLimit | MembraneLimit] = []
    limits, method = config.limits, config.method
    if limits.max_latency is not None:
        rates, multiple = method.rates or (), method.channel_multiple
        stopwatch = Stopwatch(
            start.model,
            start.graph,
            widths={group.name: widths(group.size, rates, multiple) for group in start.groups},
            inputs=inputs,
            batch=limits.latency_batch,
            table=table,
            files=Files(start.model) if limits.latency_runtime == "onnxruntime" else None,
            on_main=processes.on_main,
            tell=partial(progress, "timing") if progress is not None else lambda *_: None,
        )
        found.append(LatencyLimit(stopwatch=stopwatch, limits=limits))
    allowed = limits.allowed_membrane_bytes
    if allowed is not None:
        one = placed(batched(inputs, 1), device_of(start.model))
        limit = MembraneLimit(model=start.model, graph=start.graph, example=one, allowed=allowed)
        found.append(limit)
    return tuple(found)


def limit_notes(limits: Limits, method: Method) -> tuple[str, ...]:
    """Advice on limits that the chosen method makes hard to meet, one sentence each.

    Example:
        >>> asked = Limits(max_latency=0.5, latency_runtime="onnxruntime")
        >>> limit_notes(asked, Method(channel_multiple=8))
        ()
    """
    if limits.latency_runtime == "pytorch" or method.channel_multiple > 1:
        return ()
    return (
        "onnxruntime computes 8 or 16 channels at once, so a layer of 9 takes as long as one of 16;"
        " channel_multiple=8 keeps to widths that waste none.",
    )

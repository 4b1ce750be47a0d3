"""A policy at work: from settings and a bench to the walk that it takes."""

from __future__ import annotations

from collections.abc import Sequence

from primesvt.bench import Bench
from primesvt.channels import ChannelGroup
from primesvt.evaluation import Progress
from primesvt.policies import Allocate, Gate, Prime, Walk
from primesvt.sensitivity import find_edges, grids_of, probe_layers
from primesvt.settings import Settings

__all__ = ["choose"]


def choose(
    bench: Bench,
    groups: Sequence[ChannelGroup],
    *,
    settings: Settings,
    gate: Gate,
    stop_at_bytes: int | None = None,
    progress: Progress | None = None,
) -> Walk:
    """What the policy of the settings takes, measured on the bench.

    Args:
        bench: cuts and measures.
        groups: what may be cut, in forward order.
        settings: the policy, its rates and its order.
        gate: decides on whole networks.
        stop_at_bytes: what the parameters may take, where no more is to be saved than that.
        progress: called as ``progress(stage, done, total)``.
    """
    rates, order = settings.pruning_rates, settings.order
    if settings.policy == "allocate":
        grids = grids_of(bench, groups, rates=rates, order=order)
        allocate = Allocate(gate=gate, stop_at_bytes=stop_at_bytes, progress=progress)
        return allocate.solve(grids, bench)
    halving = not settings.whole_curves
    layers = (
        find_edges(
            bench,
            groups,
            passes=lambda probe: gate.judge(probe).passed,
            rates=rates,
            order=order,
            progress=progress,
        )
        if halving
        else probe_layers(bench, groups, rates=rates, order=order, progress=progress)
    )
    prime = Prime(
        gate=gate,
        reading=settings.reading,
        target_threshold=settings.target_threshold,
        stop_at_bytes=stop_at_bytes,
        halving=halving,
        progress=progress,
    )
    return prime.walk(layers, bench.probe)

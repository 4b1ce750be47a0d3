"""What pruning changed, measure by measure, as a terminal and a page show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from primesvt._format import megabytes, percent_points, scaled
from primesvt.profiling.energy import formulas
from primesvt.profiling.limits import LimitOutcome
from primesvt.report.names import block_of, inside

__all__ = ["Change", "Firing", "changes", "cost_notes", "cost_rows", "firing_rates", "headline"]


Row = tuple[str, str, str, str]
_BYTES = {
    "Model file": "file_bytes",
    "Membrane potentials per image": "membrane_bytes_per_sample",
    "Peak activations per image": "peak_activation_bytes_per_sample",
}
_COUNTS = {
    "MACs per image": "macs",
    "  those of real numbers": "multiplied",
    "SynOps per image": "synops",
}
_ENERGY = {"Energy by operations": "operations", "  with memory": "with_memory"}


@dataclass(frozen=True, kw_only=True)
class Firing:
    """Spikes per neuron and time step of one layer of neurons; ``after`` is ``None`` if it went."""

    block: str
    name: str
    before: float
    after: float | None


def cost_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    """Measure, before, after and change, of all costs that both networks have.

    Example:
        >>> costs = {"file_bytes": 480_000, "latency": [{"batch": 32, "milliseconds": 40.0}]}
        >>> faster = {"file_bytes": 120_000, "latency": [{"batch": 32, "milliseconds": 20.0}]}
        >>> for row in cost_rows(costs, faster):
        ...     print(*row, sep=" | ")
        Model file | 480.0 kB | 120.0 kB | -75.0%
        Time of a batch of 32 | 40.0 ms | 20.0 ms | 2.00x as fast
    """
    return [
        *_pairs(_BYTES, before, after, megabytes),
        *_pairs(_COUNTS, before.get("operations"), after.get("operations"), scaled),
        *_firing(before.get("operations"), after.get("operations")),
        *_pairs(_ENERGY, before.get("energy"), after.get("energy"), lambda x: scaled(x, "J")),
        *_times(before, after),
    ]


def cost_notes(costs: Mapping[str, Any]) -> list[str]:
    """Sentences that belong beside the figures: formulas, and how they were measured."""
    found: list[str] = []
    if costs.get("operations"):
        samples = costs["operations"]["samples"]
        noun = "input" if samples == 1 else "inputs"
        found.append(f"Spikes were counted on {samples:,} {noun} without labels.")
    if costs.get("energy"):
        found += formulas()
    if costs.get("latency"):
        found.append(_time_note(costs["latency"]))
    return found


def firing_rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Firing]:
    """Every layer of neurons with its firing rates, in forward order; empty if not measured."""
    old, new = (_rates(costs.get("operations")) for costs in (before, after))
    if not new:
        return []
    return [
        Firing(block=block_of(name), name=inside(name), before=rate, after=new.get(name))
        for name, rate in old.items()
    ]


def _rates(operations: Mapping[str, Any] | None) -> dict[str, float]:
    modules = (operations or {}).get("modules", ())
    return {
        each["module"]: each["rate"]
        for each in modules
        if each["kind"] == "neuron" and each["rate"] is not None
    }


def _pairs(
    names: Mapping[str, str],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    show: Any,
) -> Iterator[Row]:
    for measure, key in names.items():
        old, new = (before or {}).get(key), (after or {}).get(key)
        if old is not None and new is not None:
            yield measure, show(old), show(new), relative(old, new)


def _firing(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Row]:
    old, new = ((each or {}).get("firing_rate") for each in (before, after))
    if old is not None and new is not None:
        yield "Firing rate", f"{old:.1%}", f"{new:.1%}", percent_points(new - old)


def _times(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Row]:
    times = {each["batch"]: each["milliseconds"] for each in after.get("latency", ())}
    for each in before.get("latency", ()):
        old, new = each["milliseconds"], times.get(each["batch"])
        if new is not None:
            measure = f"Time of a batch of {each['batch']}"
            was, now = (scaled(time / 1e3, "s") for time in (old, new))
            yield measure, was, now, f"{old / new:.2f}x as fast"


def _time_note(latencies: Iterable[Mapping[str, Any]]) -> str:
    rows = list(latencies)
    spread = "; ".join(
        f"batch {row['batch']}: {row['runs']} runs, quartiles {scaled(row['low'] / 1e3, 's')} .. "
        f"{scaled(row['high'] / 1e3, 's')}"
        for row in rows
    )
    noun = "thread" if rows[0]["threads"] == 1 else "threads"
    return (
        f"Times: medians of runs taken in turn ({spread}); "
        f"{rows[0]['threads']} {noun}, {rows[0]['machine']}."
    )


def relative(before: float, after: float) -> str:
    """A change in percent of what was before; nothing where that was nothing.

    Example:
        >>> relative(80, 60), relative(0, 1)
        ('-25.0%', '')
    """
    return f"{(after - before) / before:+.1%}" if before else ""


SIZES = {"Parameter memory": "parameter_bytes", "Batch-norm buffers": "buffer_bytes"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measure before and after pruning, as text.

    ``part`` is ``quality``, ``size`` or ``cost``: what it takes to run.
    """

    measure: str
    before: str
    after: str
    change: str
    part: Literal["quality", "size", "cost"] = "size"


def changes(metrics: Mapping[str, Any]) -> list[Change]:
    """What pruning changed, measure by measure; what was not measured is left out."""
    before, after = metrics["before"], metrics["after"]
    rows: list[Change] = []
    for name in ("test", "selection"):
        if before.get(name) and after.get(name):
            rows += _accuracy(name, before[name], after[name])
    if before.get("score") is not None:
        rows.append(_score(before["score"], after["score"]))
    rows.append(_count("Parameters", before["parameters"], after["parameters"]))
    rows += [_size(name, before[key], after[key]) for name, key in SIZES.items() if key in before]
    return [*rows, *(_cost(*row) for row in cost_rows(before, after))]


def headline(metrics: Mapping[str, Any]) -> str:
    """The trade in one line; what went losslessly before is named beside the saving."""
    saved = f"{metrics['saving']:.1%} less parameter memory{_beside(metrics.get('lossless'))}"
    for limit in map(LimitOutcome.from_dict, metrics.get("others") or ()):
        saved += f", {1 - limit.after / limit.before:.1%} less {limit.what}"
    if metrics["after"].get("selection") is None:
        drop = metrics["before"]["score"] - metrics["after"]["score"]
        return f"{saved}, {-drop + 0.0:+.4g} of the score"
    name = "test" if metrics["after"].get("test") else "selection"
    drop = metrics["before"][name]["accuracy"] - metrics["after"][name]["accuracy"]
    return f"{saved}, {percent_points(-drop)} of accuracy on the {name} set"


def _beside(lossless: Mapping[str, Any] | None) -> str:
    """What the lossless step saved, where it shows."""
    share = lossless["share"] if lossless else 0.0
    return f" after {share:.1%} lossless" if share >= 0.005 else ""


def _accuracy(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(
            measure=f"Top-1, {name} set of {before['images']:,}",
            before=f"{before['accuracy']:.2%}",
            after=f"{after['accuracy']:.2%}",
            change=percent_points(after["accuracy"] - before["accuracy"]),
            part="quality",
        ),
        Change(
            measure="  95% interval",
            before=_interval(before),
            after=_interval(after),
            change="",
            part="quality",
        ),
    ]


def _interval(score: Mapping[str, Any]) -> str:
    return f"{100 * score['low']:.1f} .. {100 * score['high']:.1f}%"


def _score(before: float, after: float) -> Change:
    return Change(
        measure="Score",
        before=f"{before:.4g}",
        after=f"{after:.4g}",
        change=f"{after - before:+.4g}",
        part="quality",
    )


def _count(measure: str, before: int, after: int) -> Change:
    return Change(
        measure=measure,
        before=f"{before:,}",
        after=f"{after:,}",
        change=relative(before, after),
    )


def _size(measure: str, before: int, after: int) -> Change:
    return Change(
        measure=measure,
        before=megabytes(before),
        after=megabytes(after),
        change=relative(before, after),
    )


def _cost(measure: str, before: str, after: str, change: str) -> Change:
    return Change(measure=measure, before=before, after=after, change=change, part="cost")

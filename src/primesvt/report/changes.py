"""Tables of all measures before and after pruning, for the terminal and the page of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
# Of neurons of an unknown class these are null.
UNCOUNTED, NOT_COUNTED = ("membrane_bytes_per_sample", "with_memory"), "not counted"
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
    """Rows of measure, before, after and change, for all costs that were measured of both networks.

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
    """Notes under a table of costs: energy formulas, and how times and spikes were measured."""
    found: list[str] = []
    if costs.get("operations"):
        samples = costs["operations"]["samples"]
        noun = "input" if samples == 1 else "inputs"
        found.append(f"Spikes were counted on {samples:,} {noun} without labels.")
    if costs.get("energy"):
        found += formulas()
    if costs.get("latency"):
        rows = costs["latency"]
        spread = "; ".join(
            f"batch {row['batch']}: {row['runs']} runs, quartiles "
            f"{scaled(row['low'] / 1e3, 's')} .. {scaled(row['high'] / 1e3, 's')}"
            for row in rows
        )
        threads = "thread" if rows[0]["threads"] == 1 else "threads"
        found.append(
            f"Times: medians of runs taken in turn ({spread}); "
            f"{rows[0]['threads']} {threads}, {rows[0]['machine']}."
        )
    return found


def firing_rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Firing]:
    """Firing rates of every neuron layer, before and after, in forward order.

    Empty where none were measured.
    """
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
        elif key in UNCOUNTED and key in (before or {}):
            yield measure, NOT_COUNTED, NOT_COUNTED, ""


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


def relative(before: float, after: float) -> str:
    """A change in percent of the value before; empty where that was 0.

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
    """One row for each measure of both networks: before pruning, after it, and the change."""
    before, after = metrics["before"], metrics["after"]
    rows: list[Change] = []
    for name in ("test", "selection"):
        if before.get(name) and after.get(name):
            rows += _accuracy(name, before[name], after[name])
    if before.get("score") is not None:
        old, new = before["score"], after["score"]
        rows.append(
            Change(
                measure="Score",
                before=f"{old:.4g}",
                after=f"{new:.4g}",
                change=f"{new - old:+.4g}",
                part="quality",
            )
        )
    sizes = [
        *_pairs({"Parameters": "parameters"}, before, after, "{:,}".format),
        *_pairs(SIZES, before, after, megabytes),
    ]
    parts: tuple[tuple[Literal["size", "cost"], list[Row]], ...] = (
        ("size", sizes),
        ("cost", cost_rows(before, after)),
    )
    return rows + [
        Change(measure=measure, before=was, after=now, change=change, part=part)
        for part, pairs in parts
        for measure, was, now, change in pairs
    ]


def headline(metrics: Mapping[str, Any]) -> str:
    """The outcome in one line: memory saved, other limits, and the change of accuracy or score."""
    saved = f"{metrics['saving']:.1%} less parameter memory"
    if (lossless := metrics.get("lossless")) and lossless["share"] >= 0.005:
        saved += f" after {lossless['share']:.1%} lossless"
    for limit in map(LimitOutcome.from_dict, metrics.get("others") or ()):
        saved += f", {1 - limit.after / limit.before:.1%} less {limit.what}"
    if metrics["after"].get("selection") is None:
        drop = metrics["before"]["score"] - metrics["after"]["score"]
        return f"{saved}, {-drop + 0.0:+.4g} of the score"
    name = "test" if metrics["after"].get("test") else "selection"
    drop = metrics["before"][name]["accuracy"] - metrics["after"][name]["accuracy"]
    return f"{saved}, {percent_points(-drop)} of accuracy on the {name} set"


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

"""A run in sentences: the limits asked, what was reached, and which limit stopped the search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primesvt._format import above, megabytes, percent_points
from primesvt.profiling.limits import LimitOutcome
from primesvt.report.run_files import RunFiles

__all__ = ["FinetuneSummary", "Summary", "TunedRow", "limits_asked", "summary", "tuning"]


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """Top-1 of the unpruned, pruned and fine-tuned network, and the change from first to last."""

    name: str
    before: str
    pruned: str
    tuned: str
    change: str


@dataclass(frozen=True, kw_only=True)
class FinetuneSummary:
    """Accuracies before and after fine-tuning on every set, and notes on how it was done.

    ``epochs`` holds number, loss and accuracy on the selection set; epoch 0 is before fine-tuning.
    """

    rows: tuple[TunedRow, ...]
    notes: tuple[str, ...]
    epochs: tuple[tuple[int, str, str], ...] = ()


def tuning(run: RunFiles) -> FinetuneSummary | None:
    """Summarise ``finetuned/record.json``; ``None`` without it, or without an accuracy in it."""
    record = run.tuned or {}
    unpruned = record.get("unpruned") or run.metrics["before"]
    pruned = record.get("before") or run.metrics["after"]
    rows = []
    for name in ("test", "selection"):
        if record.get(name) and unpruned.get(name) and pruned.get(name):
            before, after = unpruned[name]["accuracy"], record[name]["accuracy"]
            rows.append(
                TunedRow(
                    name=f"{name} set of {record[name]['images']:,}",
                    before=f"{before:.2%}",
                    pruned=f"{pruned[name]['accuracy']:.2%}",
                    tuned=f"{after:.2%}",
                    change=percent_points(after - before),
                )
            )
    if not rows:
        return None
    # Before fine-tuning there is an accuracy and no loss yet.
    losses = ["", *(f"{loss:.3f}" for loss in record.get("loss") or ())]
    accuracies = record.get("selection_accuracy") or ()
    epochs = tuple(
        (number, loss, f"{accuracy:.2%}")
        for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=False))
    )
    return FinetuneSummary(rows=tuple(rows), notes=tuple(_notes(record)), epochs=epochs)


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    recipe = record.get("recipe") or {}
    said = []
    if recipe.get("epochs"):
        said.append(f"{recipe['epochs']} epochs")
    if record.get("kept_epoch") == 0:
        said.append("no epoch was better than the network before, which is kept")
    elif record.get("kept_epoch") is not None:
        said.append(f"epoch {record['kept_epoch']} kept")
    if recipe.get("learning_rate") is not None:
        said.append(f"learning rate {recipe['learning_rate']:g}")
    if recipe.get("distillation") is not None:
        said.append(f"distillation {recipe['distillation']:g}")
    if said:
        yield f"Fine-tuned: {', '.join(said)}."
    yield from record.get("notes") or ()


_BOUND = {
    "accuracy": ("The accuracy limit", "Any more saving that was tried breaks it."),
    "saving": ("The saving asked for", "The run stopped as soon as it was reached."),
    "rates": ("No limit", "Every layer is at the last rate that is tried."),
}


_OF_TIME = ("latency_batch", "latency_runtime")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The verdict, limits and results of a run as short sentences, for the top of its page.

    ``bound`` names the limit that bound, ``why`` explains it.
    """

    verdict: str
    asked: tuple[str, ...]
    reached: tuple[str, ...]
    bound: str
    why: str


def summary(run: RunFiles) -> Summary:
    """Summarise a run: its verdict, its limits, what it reached, and which limit bound."""
    bound, why = _bound(run)
    return Summary(
        verdict=_verdict(run),
        asked=tuple(_asked(run)),
        reached=tuple(_reached(run)),
        bound=bound,
        why=why,
    )


def _bound(run: RunFiles) -> tuple[str, str]:
    """The limit that stopped the search, and others that left it no choice."""
    name, limits = run.metrics.get("bounded_by", ""), _others(run)
    usual = (f"The limit on {name.replace('_', ' ')}", "") if name else ("Not recorded", "")
    bound, why = _BOUND.get(name, usual)
    near = [limit.what for limit in limits if limit.near]
    if name == "saving" and limits:
        why = "The run stopped as soon as it was reached and the other limits held."
    elif near and name == "rates":
        bound = f"The limit on {' and that on '.join(near)}"
    elif near and name:
        bound += f", and that on {' and that on '.join(near)}"
    missed = [f"The limit on {limit.what} does not hold." for limit in limits if not limit.held]
    used = [
        f"Of the {limit.what} allowed {limit.after / limit.allowed:.0%} is used."
        for limit in limits
        if limit.near
    ]
    return bound, " ".join(filter(None, [why, *missed, *used]))


def _others(run: RunFiles) -> tuple[LimitOutcome, ...]:
    """Limits beside accuracy and parameter memory, as they stood at the end."""
    return tuple(map(LimitOutcome.from_dict, run.metrics.get("others") or ()))


def _verdict(run: RunFiles) -> str:
    metrics = run.metrics
    if "drop" not in metrics:
        return str(metrics["verdict"])
    saving, required = metrics["saving"], metrics.get("required_saving") or 0.0
    if not metrics["met"]:
        missed = [str(limit) for limit in _others(run) if not limit.held]
        saved = f"{saving:.2%} of the parameter memory saved"
        if saving < required or not missed:
            missed.insert(0, f"{saved}, {required:.2%} asked")
        short = "; ".join(missed)
        return f"The limits cannot be met together; this is the best plan found: {short}."
    if not saving:
        return str(metrics["verdict"])
    return "All limits are met."


def _asked(run: RunFiles) -> list[str]:
    limits = dict(run.metrics.get("limits", {}))
    stop = limits.pop("stop_at_saving", False)
    for part in _OF_TIME:  # said with it
        limits.pop(part, None)
    said = [
        _LIMITS[name](value, run) if name in _LIMITS else f"{name.replace('_', ' ')}: {value}"
        for name, value in limits.items()
        if value is not None
    ]
    if not {"min_memory_saving", "max_parameter_memory"} & {k for k, v in limits.items() if v}:
        said.append("as much memory saved as the other limits allow")
    elif stop:
        said.append("no more saving than that")
    if multiple := _multiple(run):
        said.append(f"kept channels in multiples of {multiple}")
    return [*said, *_gate(run)]


def _multiple(run: RunFiles) -> int:
    """The number that kept channels must be multiples of; 0 where any number is allowed."""
    asked = int(run.settings.get("channel_multiple") or 1)
    return asked if asked > 1 else 0


def _accuracy_limit(value: Any, run: RunFiles) -> str:
    return f"at most {_loss(value, run)} {'of accuracy ' if run.images else ''}lost"


def _loss(value: float | None, run: RunFiles) -> str:
    if value is None:
        return ""
    points = "point" if value == 1 else "points"
    return f"{value:g} {points if run.images else 'of the score'}"


def _saving_limit(value: Any, _: RunFiles) -> str:
    share = f"{value:.1%} of the parameter memory" if isinstance(value, float) else value
    return f"at least {share} saved"


def _time_limit(value: Any, run: RunFiles) -> str:
    limits = run.metrics["limits"]
    return f"at most {_time(value)} for a batch of {limits.get('latency_batch', 1)}{_where(limits)}"


def _where(limits: Mapping[str, Any]) -> str:
    runtime = limits.get("latency_runtime", "pytorch")
    return "" if runtime == "pytorch" else f" in {runtime}"


def _time(value: Any) -> str:
    """A time as it was written, or a share of the time before."""
    try:
        return f"{float(value):.4g} of the time before"
    except ValueError:
        return str(value)


def _membrane_limit(value: Any, run: RunFiles) -> str:
    one = "image" if run.images else "sample"
    return f"at most {_size(value)} of membrane potentials per {one}"


def _size(value: Any) -> str:
    return value if isinstance(value, str) else megabytes(round(value))


def limits_asked(run: RunFiles) -> dict[str, str]:
    """Every limit as text by a short name, and how the accuracy limit was judged."""
    limits = run.metrics.get("limits", {})
    longest, most = limits.get("max_latency"), limits.get("max_membrane")
    batch = f"batch of {limits.get('latency_batch', 1)}{_where(limits)}"
    asked = {
        "Loss allowed": _loss(limits.get("max_accuracy_drop"), run),
        "Saving asked": _short(limits.get("min_memory_saving"), "{:.1%}"),
        "Memory allowed": _short(limits.get("max_parameter_memory"), "{} bytes"),
        "Time allowed": "" if longest is None else f"{_time(longest)}, {batch}",
        "Potentials allowed": "" if most is None else _size(most),
        **{
            name.replace("_", " ").capitalize(): str(value)
            for name, value in limits.items()
            if name not in (*_LIMITS, *_OF_TIME, "stop_at_saving") and value is not None
        },
        "Channels kept": f"multiples of {_multiple(run)}" if _multiple(run) else "",
    }
    if not asked["Saving asked"] and not asked["Memory allowed"]:
        asked["Saving asked"] = "as much as can be had"
    if limits.get("stop_at_saving"):
        asked["Stop"] = "as soon as the saving is met"
    judged = [said.removeprefix("judged by ") for said in _gate(run)]
    return {name: text for name, text in {**asked, "Judged by": "".join(judged)}.items() if text}


def _short(value: Any, form: str) -> str:
    """A limit as text: numbers in a form, sizes as they were written, nothing for no limit."""
    if value is None:
        return ""
    return value if isinstance(value, str) else form.format(value)


_LIMITS: Mapping[str, Callable[[Any, RunFiles], str]] = {
    "max_accuracy_drop": _accuracy_limit,
    "min_memory_saving": _saving_limit,
    "max_parameter_memory": lambda value, _: f"at most {_size(value)} of parameters left",
    "max_latency": _time_limit,
    "max_membrane": _membrane_limit,
}


def _gate(run: RunFiles) -> list[str]:
    gate, level = run.settings.get("gate"), run.settings.get("level")
    if gate == "bound" and run.metrics.get("bound") is not None:
        return [f"judged by an upper bound of the true loss, at {level:.0%} confidence"]
    return ["judged by the measured loss"] if gate else []


def _reached(run: RunFiles) -> list[str]:
    metrics = run.metrics
    before, after = metrics["before"], metrics["after"]
    sizes = f"{megabytes(before['parameter_bytes'])} to {megabytes(after['parameter_bytes'])}"
    said = [f"{metrics['saving']:.2%} of the parameter memory saved, {sizes}"]
    lossless = metrics.get("lossless")
    if lossless and lossless["share"]:
        said.append(f"{lossless['share']:.2%} went losslessly before, and is not counted in that")
    said += [f"{limit}{'' if limit.held else ': not held'}" for limit in _others(run)]
    multiple, cuts = _multiple(run), len(run.steps)
    if multiple and cuts:
        kept = sum(step["after"][1] % multiple == 0 for step in run.steps)
        said.append(f"{kept} of {cuts} groups that were cut keep a multiple of {multiple}")
    if "drop" in metrics:
        said.append(_drop(run))
    if confirmed := metrics.get("confirmation"):
        said.append(
            f"{percent_points(-confirmed['drop'])} on {confirmed['images']:,} images set aside, "
            f"with a bound of {above(100 * confirmed['bound'])}"
        )
    if before.get("test") and after.get("test"):
        change = percent_points(after["test"]["accuracy"] - before["test"]["accuracy"])
        said.append(f"{change} on the test set, which chose nothing")
    if tuned := tuning(run):
        said.append(f"{tuned.rows[0].change} on the {tuned.rows[0].name} after fine-tuning")
    return said


def _drop(run: RunFiles) -> str:
    drop, bound = run.metrics["drop"], run.metrics.get("bound")
    if not run.images:
        sure = "" if bound is None else f", surely no more than {bound:.4g}"
        return f"{-drop + 0.0:+.4g} of the score{sure}"
    level = run.settings.get("level")
    sure = (
        f"; at {level:.0%} confidence less than {above(100 * bound)} points lost"
        if bound and level
        else ""
    )
    return f"{percent_points(-drop)} on the selection set{sure}"

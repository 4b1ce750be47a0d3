"""What a network was before and after, and whether the limits were met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from primesvt.constraints import Constraints
from primesvt.lossless import Lossless
from primesvt.memory import (
    batch_of,
    buffer_bytes,
    membrane_bytes,
    parameter_bytes,
    parameter_count,
    peak_activation_bytes,
)
from primesvt.policies import Gate, Walk
from primesvt.probes import Reference
from primesvt.statistics import wilson_interval

__all__ = ["Accuracy", "Costs", "Metrics", "accuracy_of", "conclude", "costs_of", "notes_of"]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 on one set as a fraction, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """One network: its size, its memory per sample, and how good it is.

    ``selection`` and ``test`` are there only for a set of images, ``score`` only for a ``score``.
    """

    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    membrane_bytes_per_sample: int
    peak_activation_bytes_per_sample: int
    selection: Accuracy | None = None
    test: Accuracy | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The outcome of a run; ``metrics.json`` holds just this.

    ``before`` is the network given and ``after`` the final one. ``lossless`` is what went between
    them without changing a prediction, before any policy (``None`` where that was not asked for).
    ``saving`` and ``required_saving`` are the policy's own: fractions of the parameter bytes that
    the lossless step left, ``before.parameter_bytes - lossless.parameter_bytes``. So is a limit on
    the saving; ``max_parameter_memory`` is the size of the final network in any case.

    ``drop`` and its one-sided ``bound`` are differences of mean outcomes on the selection set from
    the network given; ``bounded_by`` is ``accuracy``, ``saving``
    (the walk stopped there), or ``rates`` (every target is at its highest probed rate).
    ``confirmation`` holds the figures on selection images that chose nothing, where there are any.
    """

    met: bool
    verdict: str
    bounded_by: str
    saving: float
    required_saving: float
    drop: float
    bound: float | None
    limits: Mapping[str, Any]
    before: Costs
    after: Costs
    data: str
    selection_from_train: bool
    notes: tuple[str, ...]
    confirmation: Mapping[str, Any] | None = None
    lossless: Lossless | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Metrics:
        """Read what ``to_dict`` made."""
        values = dict(content)
        for name in ("before", "after"):
            costs = dict(values[name])
            for part in ("selection", "test"):
                costs[part] = Accuracy(**costs[part]) if costs[part] else None
            values[name] = Costs(**costs)
        if values.get("lossless") is not None:
            values["lossless"] = Lossless.from_dict(values["lossless"])
        return cls(**{**values, "notes": tuple(values["notes"])})


def accuracy_of(value: float, images: int | None) -> Accuracy | None:
    """A top-1 fraction with its interval; ``None`` without images.

    Example:
        >>> accuracy_of(0.5, 2)
        Accuracy(accuracy=0.5, low=0.0945..., high=0.9054..., images=2)
    """
    if images is None:
        return None
    low, high = wilson_interval(round(value * images), images)
    return Accuracy(accuracy=value, low=low, high=high, images=images)


def costs_of(
    model: nn.Module,
    example: tuple[Any, ...],
    *,
    selection: Accuracy | None = None,
    test: Accuracy | None = None,
    score: float | None = None,
) -> Costs:
    """Measure sizes, and run the example once for membrane and activation memory."""
    return Costs(
        parameters=parameter_count(model),
        parameter_bytes=parameter_bytes(model),
        buffer_bytes=buffer_bytes(model),
        membrane_bytes_per_sample=membrane_bytes(model, example),
        peak_activation_bytes_per_sample=peak_activation_bytes(model, example) // batch_of(example),
        selection=selection,
        test=test,
        score=score,
    )


def conclude(
    walk: Walk,
    reference: Reference,
    constraints: Constraints,
    *,
    gate: Gate,
    points: bool,
    lossless: Lossless | None = None,
) -> dict[str, Any]:
    """Whether the limits are met, how far the walk came, and which limit bound.

    All of it counts from the network of ``reference.parameter_bytes``, after the lossless step.
    Returns the fields ``met``, ``verdict``, ``bounded_by``, ``saving``, ``required_saving``,
    ``drop`` and ``bound`` of ``Metrics``.
    """
    before = reference.parameter_bytes
    left = walk.probe.parameter_bytes if walk.probe else before
    required = constraints.required_bytes(before)
    drop = walk.verdict.drop if walk.verdict else 0.0
    bound = walk.verdict.bound if walk.verdict else None
    bounded_by = "saving" if walk.stopped else "accuracy" if walk.accuracy_bound else "rates"
    met = before - left >= required
    facts: dict[str, Any] = {
        "met": met,
        "bounded_by": bounded_by,
        "saving": 1 - left / before,
        "required_saving": required / before,
        "drop": drop,
        "bound": bound,
    }
    cost = _cost(drop, bound if gate.kind == "bound" else None, gate, points=points)
    more = lossless is not None and lossless.parameters > 0
    return {**facts, "verdict": _verdict(facts, cost, "Nothing more" if more else "Nothing")}


def _cost(drop: float, bound: float | None, gate: Gate, *, points: bool) -> str:
    """The drop in words, such as ``a drop of 0.67 points (2 allowed)``."""
    unit, noun = (100.0, "points") if points else (1.0, "in score")
    sure = "" if bound is None else f", at {gate.level:.0%} confidence below {bound * unit:.4g}"
    return f"a drop of {drop * unit + 0.0:.4g} {noun}{sure} ({gate.allowed * unit:.4g} allowed)"


_WHY = {
    "saving": "stopped as soon as the saving was reached",
    "accuracy": "the accuracy limit bound",
    "rates": "no limit bound, every layer is at the last rate that is tried",
}


def _verdict(facts: Mapping[str, Any], cost: str, nothing: str) -> str:
    saved = f"{facts['saving']:.2%} of the parameter memory saved"
    asked = f" ({facts['required_saving']:.2%} asked)" if facts["required_saving"] > 0 else ""
    why = _WHY[facts["bounded_by"]]
    if facts["saving"] == 0 and facts["met"]:
        return f"{nothing} was removed: no probed cut stays within the accuracy limit."
    if facts["met"]:
        return f"Limits met: {saved}{asked} for {cost}; {why}."
    return (
        f"The limits cannot be met together: the best plan found has {saved}{asked} "
        f"for {cost}; {why}."
    )


def notes_of(walk: Walk, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """What a reader must know beside the figures: layers that are no targets, and refusals."""
    if not walk.targets:
        return tuple(extra)
    left_out = [target for target in walk.targets if not target.chosen]
    deselected = [f"{t.layer.group} is no target: {t.reason}." for t in left_out]
    if not left_out:
        deselected = [f"No layer was deselected: all {len(walk.targets)} are targets."]
    return (*extra, *deselected)

"""Which runs the evidence table is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["CONTROLS", "POINTS", "POLICIES", "RECOVERIES", "Goal", "Row", "goals", "rows"]

POLICIES = ("allocate", "prime", "psvit", "uniform", "global", "random")
# What a policy works with: nothing (the paper's), or what this package does without training.
RECOVERIES: dict[str, dict[str, Any]] = {
    "none": {"importance": "l2", "recovery": "none"},
    "refit": {"importance": "obs", "recovery": "refit"},
}
POINTS = (1.0, 3.0)  # accuracy limits, with the bound gate and the confirmation
PUBLISHED = 0.2668  # memory saved by PrimeSVT on ImageNet-1K (arXiv 2606.03428)
SAVINGS = (PUBLISHED, 0.5, 0.7)
LOOSE = 25.0  # points: a limit that does not bind, where a saving is asked for
CONTROLS = ("unpruned, fine-tuned", "narrow, from scratch", "unstructured")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A limit of accuracy, or a saving."""

    name: str
    constraints: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: a network, a policy with what it works with, and a goal."""

    model: str
    policy: str
    recovery: str
    goal: str
    options: dict[str, Any]
    constraints: dict[str, Any]
    finetuned: bool

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells rows apart."""
        return self.model, self.policy, self.recovery, self.goal


def goals() -> Iterator[Goal]:
    """Accuracy limits first, then savings; the paper's is one of them."""
    for points in POINTS:
        limits = {"max_accuracy_drop": points, "min_memory_saving": None}
        yield Goal(name=f"{points:g} points", constraints=limits)
    for saving in SAVINGS:
        limits = {
            "max_accuracy_drop": LOOSE,
            "min_memory_saving": saving,
            "stop_at_saving": True,
        }
        yield Goal(name=f"{saving:.4g} saved", constraints=limits)


def rows(model: str, *, first: bool, cheap: bool) -> Iterator[Row]:
    """The runs of one network, the most telling first.

    Args:
        model: its name.
        first: all policies with both recoveries and at all goals, not a part of them.
        cheap: fine-tuning takes seconds, so every run is fine-tuned.
    """
    paper = {**RECOVERIES["none"], "policy": "prime", "gate": "point", "confirm": False}
    for goal in goals():
        told = first or goal.name in ("3 points", "1 points", f"{PUBLISHED:.4g} saved")
        for recovery, options in RECOVERIES.items():
            for policy in POLICIES:
                main = policy in ("allocate", "prime")
                if not (first or (told and (main or recovery == "refit"))):
                    continue
                bound = "points" in goal.name
                gate = {"gate": "bound" if bound else "point", "confirm": bound}
                yield Row(
                    model=model,
                    policy=policy,
                    recovery=recovery,
                    goal=goal.name,
                    options={
                        **options,
                        **gate,
                        "policy": policy,
                        "confirm": "bound" in gate["gate"],
                    },
                    constraints=goal.constraints,
                    finetuned=cheap or (told and (main or first) and recovery == "refit"),
                )
        if "points" in goal.name:
            yield Row(
                model=model,
                policy="prime, as published",
                recovery="none",
                goal=goal.name,
                options={**paper, "lossless": False, "exact": True},
                constraints=goal.constraints,
                finetuned=cheap or first,
            )

"""Plans: the channels that stay in every group, and the order of the cuts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import TypedDict

from primesvt._files import read_json, validated, write_json
from primesvt.channels.graph import ChannelGraph
from primesvt.channels.rewriting import describe_rewrites
from primesvt.channels.surgery import remove_channels
from primesvt.channels.tracing import trace

__all__ = [
    "FORMAT",
    "Kept",
    "Plan",
    "PlanStep",
    "apply_plan",
    "check_inputs",
    "describe_inputs",
    "example_inputs",
]

FORMAT = 1
NOTHING = "nothing"
Kept = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class PlanStep:
    """One cut of a plan, and the accuracy and size of the network after it.

    Attributes:
        group: the channel group.
        rate: the pruning rate it was probed at.
        before, after: front positions and channels at each, ``(positions, size)``.
        accuracy: top-1 on the selection set as a fraction, or the score; ``None`` where this
            network was not measured, as groups were cut together.
        drop: how much less that is than for the unpruned network.
        bound: one-sided confidence bound of the drop, where outcomes are paired.
        saving: parameter bytes gone, as a fraction.
        parameter_bytes: what is left.
        recovery: what made up for the cut, such as ``least squares (mlp.fc2), batch norm``.
    """

    group: str
    rate: float
    before: tuple[int, int]
    after: tuple[int, int]
    accuracy: float | None
    drop: float | None
    bound: float | None
    saving: float
    parameter_bytes: int
    recovery: str = NOTHING


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cuts of a pruned network, which can be applied to any model of the same architecture.

    Attributes:
        model_hash: digest of the unpruned model.
        config: its config; ``None`` for a foreign module.
        inputs: shape and dtype of each input it was traced with.
        steps: cuts in the order taken.
        groups: group -> kept channels, ORIGINAL indices nested per front position.
        rewrites: sizes that the forward of a foreign module writes, before and after the cuts.

    Example:
        >>> Plan(model_hash="", config=None, inputs=(), steps=(), groups={}).to_dict()["format"]
        1
    """

    model_hash: str
    config: Mapping[str, Any] | None
    inputs: tuple[Mapping[str, Any], ...]
    steps: tuple[PlanStep, ...]
    groups: Mapping[str, Kept]
    rewrites: tuple[Mapping[str, Any], ...] = ()

    @property
    def recovered(self) -> bool:
        """Whether weights were adapted after a cut, so that replaying the cuts is not enough."""
        return any(step.recovery != NOTHING for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Any, *, source: str = "the plan") -> Plan:
        """Read what ``to_dict`` made; anything else raises one ``ValueError``."""
        made = content.get("format") if isinstance(content, Mapping) else None
        if made != FORMAT:
            raise ValueError(
                f"{source} is no plan of format {FORMAT} (found format {made}); "
                "give the plan.json of a run folder, or update primesvt"
            )
        try:
            plan = validated(cls, content)
            check_inputs(plan.inputs)
            validated(list[_Rewritten], list(plan.rewrites))
        except ValueError as error:
            raise ValueError(f"{source} is damaged: {error}") from error
        if {step.group for step in plan.steps} != set(plan.groups):
            raise ValueError(f"{source} is damaged: its steps and its groups name different ones")
        return plan

    def save(self, path: str | Path) -> Path:
        """Write ``plan.json``, whole or not at all."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file, or the plan of a run folder."""
        path = Path(path)
        path = path / "plan.json" if path.is_dir() else path
        try:
            content = read_json(path)
        except OSError as error:
            raise ValueError(f"there is no plan {str(path)!r}; give a run folder") from error
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file: {error}") from error
        return cls.from_dict(content, source=str(path))


def describe_inputs(example: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """Shape and dtype of example inputs, as a plan keeps them.

    Example:
        >>> describe_inputs((torch.zeros(1, 3),))
        ({'shape': [1, 3], 'dtype': 'float32'},)
    """
    return tuple(
        {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for value in example
        if isinstance(value, torch.Tensor)
    )


def example_inputs(inputs: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, ...]:
    """Random inputs of the recorded shapes, always the same, to trace a model with."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand(list(given["shape"]), generator=generator).to(getattr(torch, given["dtype"]))
        for given in inputs
    )


def apply_plan(
    model: nn.Module, plan: Plan, *, example_input: Any = None, graph: ChannelGraph | None = None
) -> ChannelGraph:
    """Cut a model in place as a plan says, and return the graph of the smaller model.

    Args:
        model: unpruned, of the plan's architecture; its weights may differ.
        plan: what to keep.
        example_input: what to trace with; inputs of the recorded shapes, when not given.
        graph: the model's graph, to spare the trace.

    Raises:
        ValueError: a group that the model does not have, or has at another size.
    """
    if graph is None:
        graph = trace(
            model, example_inputs(plan.inputs) if example_input is None else example_input
        )
    for step in plan.steps:
        group = graph[step.group]
        if (group.positions, group.size) != step.before:
            raise ValueError(
                f"the plan was made for {_size(*step.before)} channels in {step.group}, but this "
                f"model has {_size(group.positions, group.size)}; give the unpruned model it was "
                "made for"
            )
    smaller = remove_channels(model, graph, plan.groups)
    made = describe_rewrites(smaller.rewrites, smaller.sizes)
    if plan.rewrites and _facts(made) != _facts(plan.rewrites):
        raise ValueError(
            "the plan was made for a forward that writes other sizes than this one: give the class "
            "as it was when it was pruned, or prune it again"
        )
    return smaller


def _facts(rewrites: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rewrites without line numbers, which an edit elsewhere in the file changes."""
    return sorted(
        (str(r["module"]), str(r["kind"]), f"{r['before']:.9g}", f"{r['after']:.9g}")
        for r in rewrites
    )


class _Rewritten(TypedDict):
    """A size that a forward writes, before and after the cuts."""

    module: str
    kind: str
    name: str
    before: int | float
    after: int | float


LARGEST = 2**28  # values of an input, as a trace takes small ones


class _Input(TypedDict):
    """Shape and dtype of an input."""

    shape: list[int]
    dtype: str


def check_inputs(inputs: Any) -> None:
    """Raise ``ValueError`` where recorded inputs are none that a model could be traced with."""
    for each in validated(list[_Input], list(inputs)):
        shape, dtype = each["shape"], each["dtype"]
        known = isinstance(getattr(torch, dtype, None), torch.dtype) and "quint" not in dtype
        if len(shape) > 8 or min(shape, default=1) < 0 or math.prod(shape) > LARGEST or not known:
            raise ValueError(f"an input of shape {shape[:8]} and dtype {dtype}")


def _size(positions: int, size: int) -> str:
    return f"{positions} x {size}" if positions > 1 else str(size)

"""The table of rules, and the operator call that a rule is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from primesvt.channels.symbols import Axis, Freeze, Symbol, freeze, pin

Axes = list[Axis]


# What to do about a sum, norm or product of weights over their channels.
STORE = "of weights alone: compute it once and store the result as a buffer or parameter"


class Unlisted(Exception):
    """The rule does not cover this form of the operator."""


class Tracker(Protocol):
    """The part of the trace that rules use."""

    def axes(self, tensor: torch.Tensor) -> Axes: ...

    def weight(self, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]] | None: ...

    def link(self, role: str, weight: tuple[str, int], axis: Axis) -> None: ...

    def read(self, operand: int, dim: int, axes: Axes, *, live: bool) -> None: ...

    def live(self, tensor: torch.Tensor) -> bool: ...

    def weighs(self, tensor: torch.Tensor) -> bool: ...

    def along(self, axis: Axis) -> tuple[str, int] | None: ...

    def parametrized(self, module: str, axis: Axis, *, last: bool) -> tuple[str, int] | None: ...

    def held(self, tensor: torch.Tensor) -> str: ...

    def zero(self, tensor: torch.Tensor) -> bool: ...

    def layer(self, read: Axis, made: Axis) -> None: ...

    def one_layer(self, read: Axis, made: Axis) -> bool: ...

    def grouped(self, weight: str, groups: Axis) -> None: ...

    def strides(self) -> list[tuple[int, int]]: ...


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator call: its arguments by name, its outputs, and the trace."""

    name: str
    tensors: Sequence[torch.Tensor]
    arguments: dict[str, Any]
    outputs: Sequence[torch.Tensor]
    trace: Tracker
    module: str

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        value = self.arguments.get(argument)
        return default if value is None else value

    def axes(self, argument: str) -> Axes:
        return list(self.trace.axes(self.arguments[argument]))

    def dims(self, argument: str, rank: int) -> list[int]:
        """Normalised dims of an argument; absent or empty means all."""
        value = self.arguments.get(argument)
        if value is None or value == []:
            return list(range(rank))
        values = value if isinstance(value, list | tuple) else [value]
        return [int(v) % max(rank, 1) for v in values]

    def read(self, argument: str, dim: int) -> None:
        """Record that an operator sums over an axis, which verification may silence."""
        tensor = self.arguments[argument]
        position = next(i for i, t in enumerate(self.tensors) if t is tensor)
        live = self.trace.live(tensor)
        self.trace.read(position, dim, self.axes(argument), live=live)

    def weights_alone(self, *arguments: str) -> bool:
        """Whether the arguments are computed from weights alone, without activations.

        Zeros do no harm: their sum is zero, whatever is removed.
        """
        tensors = [self.arguments[a] for a in arguments]
        return not any(self.trace.live(t) or self.trace.zero(t) for t in tensors)

    def why(self, reason: str) -> Freeze:
        """The freeze for a reason, which names plain attributes that are given to the operator."""
        names = list(filter(None, map(self.trace.held, self.tensors)))
        if names:
            reason = f"{reason} with the attribute '{names[0]}'"
        return Freeze(operator=self.name, module=self.module, reason=reason)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Forbid removal along an axis, and different choices of channels along its values."""
        freeze(axis, self.why(reason))
        for symbol in axis:
            pin(symbol)

    def frozen(self, size: int, reason: str) -> Axis:
        """A fresh axis along which nothing can be removed."""
        symbol = Symbol(size)
        freeze((symbol,), self.why(reason))
        return (symbol,)


Rule = Callable[[Call], Axes | list[Axes]]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators (without overload, without trailing underscore)."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[f"aten::{name}"] = function
        return function

    return register


def find_rule(op: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator; element-wise operators are found by their tag.

    Some in-place forms lack the tag that the operator itself has.
    """
    name = op._schema.name
    found = _RULES.get(name) or _RULES.get(name.rstrip("_"))
    plain = getattr(
        getattr(torch.ops.aten, name.removeprefix("aten::").rstrip("_"), None), op._overloadname, op
    )
    if found is None and torch.Tag.pointwise in {*op.tags, *plain.tags}:
        found = _RULES["aten::pointwise"]
    return found

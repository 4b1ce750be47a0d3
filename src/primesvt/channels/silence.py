"""Run the original with readers silenced and the pruned model, and compare all results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from primesvt.channels.graph import ChannelGroup, Ids, kept_mask
from primesvt.channels.layout import Layout, coordinates
from primesvt.channels.tracer import bind
from primesvt.models.forward import is_tensor

TOLERANCE = 1e-8  # relative, float64: other summation orders stay far below, wrong constants above

CRASH = "a size is written into the forward: read it from the tensor (x.shape, -1) instead"
DIFFER = "a constant follows the width: store the original value as an attribute or buffer"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first difference between the pruned model and the silenced original."""

    module: str
    reason: str
    fix: str


# They compute nothing, and whether one is needed at all depends on strides (an axis of size 1).
# What stands in new memory is chance.
PASSIVE = frozenset(
    f"aten::{n}"
    for n in (
        "view",
        "_unsafe_view",
        "reshape",
        "expand",
        "clone",
        "alias",
        "detach",
        "t",
        "transpose",
        "permute",
        "squeeze",
        "unsqueeze",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
    )
)


class Traced(Protocol):
    """The parts of a trace that a silenced run needs."""

    sizes: dict[int, int]
    results: list[list[list[Layout]]]
    reads: list[tuple[int, int, int, Layout]]
    operands: dict[int, dict[int, list[Layout]]]


LARGE = 1e30  # beyond it stand masks (infinities, the least number), which would hide the rest

Print = tuple[tuple[int, ...], float, float, float]


def _fingerprint(tensor: torch.Tensor) -> Print:
    """Shape, sum and norm of a tensor, and a sum weighted by position: order counts."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    values = tensor.double().reshape(-1)
    square = float(values @ values)
    if not square < LARGE**2:
        values = torch.nan_to_num(values, nan=0.5)
        values = torch.where(values.abs() < LARGE, values, values.sign())
        square = float(values @ values)
    count = values.shape[0]
    total, placed = (_weights(1 << count.bit_length())[:, :count] @ values).tolist()
    return tuple(tensor.shape), total, square**0.5, placed


def _alike(found: Print, expected: Print) -> bool:
    (shape, *sums), (want, *wanted) = found, expected
    scale = TOLERANCE * (wanted[1] * max(1.0, float(np.prod(want)) ** 0.5) + 1e-12)
    return shape == want and all(abs(a - b) <= scale for a, b in zip(sums, wanted, strict=True))


def agree(expected: list[torch.Tensor], found: list[torch.Tensor]) -> bool:
    """Whether a pruned model gives what the silenced original does, whatever stands between."""
    pairs = zip(found, expected, strict=False)
    same = all(_alike(_fingerprint(a), _fingerprint(b)) for a, b in pairs)
    return same and len(found) == len(expected) > 0


@cache
def _weights(count: int) -> torch.Tensor:
    """For every position a one, and a number in -1..1 of which no two neighbours are alike."""
    places = torch.arange(count, dtype=torch.float64)
    return torch.stack([torch.ones_like(places), places.cos()])


class Silenced(TorchDispatchMode):
    """Runs the original so that every reader gets zeros in the removed channels."""

    def __init__(self, *, traced: Traced, kept: dict[int, tuple[ChannelGroup, Ids]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traced, self.kept = traced, kept
        self.stack: list[str] = []
        self.call = 0
        self.prints: list[list[Print]] = []
        self.drawn: list[torch.Tensor] = []  # of random numbers, those that remain
        self.reads: dict[int, list[tuple[int, int]]] = {}
        self._keeps: dict[tuple[int, ...], torch.Tensor] = {}
        for call, operand, dim, layout in traced.reads:
            if layout.symbols() & kept.keys():
                self.reads.setdefault(call, []).append((operand, dim))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.call in self.reads:
            args, kwargs = self._silence(func, args, kwargs, self.call)
        result = func(*args, **kwargs)
        if func._schema.name not in PASSIVE:
            outputs = [t for t in tree_leaves(result) if is_tensor(t)]
            pairs = zip(outputs, self.traced.results[self.call], strict=True)
            left = [self._survivors(t, x) for t, x in pairs]
            self.prints.append([_fingerprint(t) for t in left])
            if torch.Tag.nondeterministic_seeded in func.tags:
                self.drawn += [t.clone() for t in left]
        self.call += 1
        return result

    def _silence(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        flat = [a for a in tree_leaves(list(bind(func, args, kwargs).values())) if is_tensor(a)]
        masked: dict[int, torch.Tensor] = {}
        for operand, dim in self.reads[call]:
            tensor = masked.get(id(flat[operand]), flat[operand])
            keep = self._keep(self.traced.operands[call][operand], dim)
            masked[id(flat[operand])] = tensor * keep.to(tensor.dtype)

        def swap(tensor: torch.Tensor) -> torch.Tensor:
            return masked.get(id(tensor), tensor)

        mapped: tuple[tuple[Any, ...], dict[str, Any]] = (
            tree_map_only(torch.Tensor, swap, args),
            tree_map_only(torch.Tensor, swap, kwargs),
        )
        return mapped

    def _survivors(self, tensor: torch.Tensor, layouts: list[Layout]) -> torch.Tensor:
        """The entries that remain after the cut, in the pruned model's order."""
        for dim, layout in enumerate(layouts):
            if not layout.symbols() & self.kept.keys():
                continue
            keep = self._keep(layouts, dim)
            count = int(keep.sum(dim).amax())
            index = torch.argsort((~keep).to(torch.uint8), dim=dim, stable=True)
            tensor = torch.take_along_dim(tensor, index.narrow(dim, 0, count), dim=dim)
        return tensor

    def _keep(self, layouts: list[Layout], dim: int) -> torch.Tensor:
        """True where an entry survives, broadcast over the axes that the front symbols stand on."""
        key = (dim, *map(id, layouts))  # the trace keeps one layout per axis, so ids are stable
        if key not in self._keeps:
            sizes = self.traced.sizes
            tables = [coordinates(layout, sizes) for layout in layouts]
            keep = torch.ones([1] * len(layouts), dtype=torch.bool)
            for symbol in layouts[dim].symbols() & self.kept.keys():
                group, rows = self.kept[symbol]
                stays = torch.from_numpy(kept_mask(group, rows))
                position = torch.zeros([1] * len(layouts), dtype=torch.int64)
                for front, size in zip(group.front_symbols, group.fronts, strict=True):
                    at = next((d for d in (dim, *range(len(tables))) if front in tables[d]), -1)
                    step = _along(tables[at][front], at, len(layouts)) if at >= 0 else 0
                    position = position * size + step
                channel = _along(tables[dim][symbol], dim, len(layouts))
                keep = keep & ((channel < 0) | stays[position.clamp(min=0), channel.clamp(min=0)])
            self._keeps[key] = keep
        return self._keeps[key]


def _along(values: Ids, dim: int, rank: int) -> torch.Tensor:
    shape = [1] * rank
    shape[dim] = -1
    return torch.from_numpy(values).reshape(shape)


class Compared(TorchDispatchMode):
    """Runs the pruned model and compares each result with the silenced original's.

    It draws the random numbers that the original drew, where their shapes fit.
    """

    def __init__(
        self,
        *,
        expected: list[list[Print]],
        drawn: list[torch.Tensor],
        shapes_only: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expected, self.drawn, self.shapes_only = expected, list(drawn), shapes_only
        self.stack: list[str] = []
        self.call = 0
        self.failure: Failure | None = None

    def where(self) -> str:
        return self.stack[-1] if self.stack else ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            for tensor in (t for t in tree_leaves(result) if is_tensor(t)):
                drawn = self.drawn.pop(0) if self.drawn else tensor
                if drawn.shape == tensor.shape:
                    tensor.copy_(drawn)
        if func._schema.name not in PASSIVE:
            if self.failure is None:
                outputs = [t for t in tree_leaves(result) if is_tensor(t)]
                self._compare(func, [_fingerprint(t) for t in outputs])
            self.call += 1
        return result

    def _compare(self, func: Any, found: list[Print]) -> None:
        if self.call >= len(self.expected):
            self._fail("the forward takes another path after a cut", CRASH)
            return
        for one, other in zip(found, self.expected[self.call], strict=False):
            if one[0] != other[0]:
                text = f"a result of {func} has shape {one[0]} instead of {other[0]} after a cut"
                self._fail(text, CRASH)
                return
            if not self.shapes_only and not _alike(one, other):
                self._fail(f"the result of {func} differs from the silenced original", DIFFER)
                return

    def finish(self) -> Failure | None:
        """The first difference found; also where the pruned model's forward ended early."""
        if self.failure is None and self.call < len(self.expected):
            self._fail("the forward ends earlier after a cut", CRASH)
        return self.failure

    def _fail(self, reason: str, fix: str) -> None:
        self.failure = Failure(module=self.where(), reason=reason, fix=fix)

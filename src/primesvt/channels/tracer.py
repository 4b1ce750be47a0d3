"""Trace one forward pass: a dispatch mode that follows the symbols of every tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from primesvt._switches import Switched
from primesvt.channels.rules import Call, Unlisted, find_rule
from primesvt.channels.symbols import (
    Axis,
    Freeze,
    Misfit,
    Symbol,
    flatten,
    freeze,
    leaves,
    protect,
    size_of,
    unit,
)
from primesvt.channels.written_sizes import EINOPS, SizeRecorder, Written, telling_attributes
from primesvt.models.forward import hooked, is_tensor, state_tensors
from primesvt.models.multihead import MultiheadAttention
from primesvt.models.state import attribute_of, held_tensors, reset, tensors_in

Axes = list[Axis]
WeightAxis = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Read:
    """An operator that drops an axis by contraction or sum.

    A check silences the operand if it is ``live``; what weights alone make stays as it is.
    """

    call: int
    operand: int
    dim: int
    axes: Axes
    live: bool


class Origin(IntEnum):
    """What a tensor is computed from; the highest value among its sources."""

    CONSTANT = 0  # made by factories alone
    WEIGHTS = 1  # parameters and buffers
    ACTIVATION = 2  # the model's input


@dataclass(kw_only=True)
class Memory:
    """The values that a tensor and its views share: how many, and where they come from."""

    size: int
    origin: Origin


@dataclass(kw_only=True)
class Record:
    """The record of one trace, from which the channel graph is built."""

    tensors: dict[str, Axes] = field(default_factory=dict)
    links: dict[str, dict[WeightAxis, None]] = field(
        default_factory=lambda: {"producer": {}, "reader": {}}
    )
    groups: dict[str, Axis] = field(default_factory=dict)
    layers: list[tuple[Axis, Axis]] = field(default_factory=list)  # what each read and made
    reads: list[Read] = field(default_factory=list)
    outputs: dict[str, list[Axes]] = field(default_factory=dict)  # of modules, in forward order
    results: list[list[Axes]] = field(default_factory=list)  # of every call
    freezes: dict[Freeze, None] = field(default_factory=dict)
    noted: list[Written] = field(default_factory=list)  # calls with sizes or factors
    mixed: set[tuple[str, str]] = field(default_factory=set)  # attributes that are no mere sizes
    held: set[str] = field(default_factory=set)  # tensors that are plain attributes
    used: dict[str, str] = field(default_factory=dict)  # parameter or buffer -> what reads it first


class Tracer(TorchDispatchMode):
    """Dispatch mode that applies the rule of every operator to its tensors' symbols."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = Record()
        self.stack: list[str] = []
        self.runs: list[int] = []  # which forward of a module each on the stack is
        self.entered = 0
        self._strides: list[tuple[int, int]] = []
        self._axes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._weights: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._names: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._memories: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._held: dict[int, tuple[str, torch.Tensor]] = {}
        self._model: nn.Module | None = None

    # --- what rules ask -------------------------------------------------------------------

    def axes(self, tensor: torch.Tensor) -> Axes:
        return list(self._axes[tensor])

    def weight(self, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]] | None:
        found: tuple[str, tuple[int, ...]] | None = self._weights.get(tensor)
        return found

    def link(self, role: str, weight: WeightAxis, axis: Axis) -> None:
        self.record.links[role][weight] = None

    def read(self, operand: int, dim: int, axes: Axes, *, live: bool) -> None:
        call = len(self.record.results)
        self.record.reads.append(Read(call=call, operand=operand, dim=dim, axes=axes, live=live))

    def live(self, tensor: torch.Tensor) -> bool:
        """True if the tensor is computed from the model's input."""
        return self._origin(tensor) is Origin.ACTIVATION

    def weighs(self, tensor: torch.Tensor) -> bool:
        """True if the tensor is a weight, or computed from weights alone."""
        return self._origin(tensor) is Origin.WEIGHTS

    def along(self, axis: Axis) -> WeightAxis | None:
        """The axis with these channels of a parameter that a layer can apply and not yet reads."""
        wanted = {leaf for symbol in axis for leaf in leaves(symbol)}
        for name, axes in self.record.tensors.items():
            for d, own in enumerate(axes if name not in self.record.held else ()):
                shared = wanted.intersection(leaf for symbol in own for leaf in leaves(symbol))
                if shared and len(axes) > 1 and (name, d) not in self.record.links["reader"]:
                    return name, d
        return None

    def parametrized(self, module: str, axis: Axis, *, last: bool) -> WeightAxis | None:
        """Find the axis with these channels in the tensors that a layer computes its weight from.

        Where a layer reads the channels that it makes, its first axis makes them, its ``last``
        reads them.
        """
        start = f"{module}.parametrizations." if module else "parametrizations."
        wanted = {leaf for symbol in axis for leaf in leaves(symbol)}
        found = [
            (name, d)
            for name, axes in self.record.tensors.items()
            if name.startswith(start) and len(axes) > 1
            for d, own in enumerate(axes)
            if wanted.intersection(leaf for symbol in own for leaf in leaves(symbol))
        ]
        return found[-1 if last else 0] if found else None

    def held(self, tensor: torch.Tensor) -> str:
        """The name of a tensor that a module keeps as a plain attribute; else an empty text."""
        name = self._names.get(tensor, "")
        return name if name in self.record.held else ""

    def zero(self, tensor: torch.Tensor) -> bool:
        """True for a constant of zeros: the first state of a recurrence, for one."""
        return self._origin(tensor) is Origin.CONSTANT and not tensor.any()

    def layer(self, read: Axis, made: Axis) -> None:
        self.record.layers.append((read, made))

    def one_layer(self, read: Axis, made: Axis) -> bool:
        """True if a single layer made the second axis out of the first."""
        wanted = (_solid(read), _solid(made))
        return any((_solid(r), _solid(m)) == wanted for r, m in self.record.layers)

    def grouped(self, weight: str, groups: Axis) -> None:
        self.record.groups[weight] = groups

    def strides(self) -> list[tuple[int, int]]:
        """Sizes and strides of what the running ``as_strided`` was given, before it ran."""
        return self._strides

    # --- following tensors ----------------------------------------------------------------

    def name_state(self, model: nn.Module) -> None:
        """Give every axis of every parameter and buffer a fresh symbol (shared tensors once).

        A buffer that was put back at rest since has the symbols it had.
        """
        for name, tensor in state_tensors(model).items():
            if tensor in self._axes:
                self.record.tensors[name] = self._axes[tensor]
                continue
            axes = self.follow(tensor, Origin.WEIGHTS)
            if [size_of(a) for a in self.record.tensors.get(name, axes)] == list(tensor.shape):
                self._axes[tensor] = self.record.tensors.setdefault(name, axes)
            self._names[tensor] = name
            self._weights[tensor] = (name, tuple(range(tensor.dim())))

    def name_attributes(self, model: nn.Module) -> None:
        """Note tensors that modules keep as plain attributes; they are followed once read."""
        self._held = {id(t): (n, t) for n, t in reversed(held_tensors(model).items())}
        self._model = model

    def _follow_held(self, tensor: torch.Tensor) -> None:
        """Give the axes of a plain attribute symbols, as those of a buffer have."""
        name, kept = self._held.get(id(tensor), ("", None))
        if kept is tensor:
            axes = self.follow(tensor, Origin.WEIGHTS)
            if [size_of(a) for a in self.record.tensors.get(name, axes)] == list(tensor.shape):
                self._axes[tensor] = self.record.tensors.setdefault(name, axes)
            self._names[tensor] = name
            self.record.held.add(name)

    def follow(self, tensor: torch.Tensor, origin: Origin) -> Axes:
        axes: Axes = [(Symbol(n),) if n != 1 else unit() for n in tensor.shape]
        self._axes[tensor] = axes
        self._memories[tensor] = Memory(size=tensor.numel(), origin=origin)
        return axes

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        arguments = bind(func, args, kwargs or {})
        tensors = [a for a in tree_leaves(list(arguments.values())) if is_tensor(a)]
        if func._schema.name.startswith("aten::as_strided"):  # in place, it forgets the old ones
            first = tensors[0]
            self._strides = list(zip(first.shape, first.stride(), strict=True))
        for tensor in tensors:
            if tensor not in self._axes:
                self._follow_held(tensor)
        result = func(*args, **(kwargs or {}))
        for name in (self._names[t] for t in tensors if t in self._names):
            where = f" in module '{self.stack[-1]}'" if self.stack and self.stack[-1] else ""
            self.record.used.setdefault(name, f"{func._schema.name}{where}")
        outputs = [o for o in tree_leaves(result) if is_tensor(o)]
        call = Call(
            name=func._schema.name,
            tensors=tensors,
            arguments=arguments,
            outputs=outputs,
            trace=self,
            module=self.stack[-1] if self.stack else "",
        )
        axes = self._apply(func, call)
        for tensor, known in zip(outputs, axes, strict=True):
            self._axes[tensor] = known
        self._carry_weight(call)
        self._carry_origin(use_of(func), call)
        self.record.results.append(axes)
        return result

    def _apply(self, func: torch._ops.OpOverload, call: Call) -> list[Axes]:
        rule = find_rule(func)
        for tensor in call.tensors:
            if tensor not in self._axes and tensor.numel() == 1:  # no channel lies along it
                self.follow(tensor, Origin.WEIGHTS)
        unknown = next((t for t in call.tensors if t not in self._axes), None)
        if unknown is not None:
            attribute = attribute_of(self._model).get(id(unknown)) if self._model else None
            what = f"{attribute}, " if attribute else ""
            return self._refuse(call, f"it reads {what}a tensor that is neither state nor input")
        if rule is None:
            return self._refuse(call, "no rule says what this operator does to channels")
        try:
            out = rule(call)
        except Unlisted:
            return self._refuse(call, "no rule covers this form of the operator")
        except Misfit as error:
            return self._refuse(call, str(error))
        many = len(call.outputs) != 1 or (bool(out) and isinstance(out[0], list))
        axes: list[Axes] = out if many else [out]  # type: ignore[list-item, assignment]
        if [[size_of(a) for a in t] for t in axes] != [list(t.shape) for t in call.outputs]:
            return self._refuse(call, "no rule covers this form of the operator")
        return axes

    def _refuse(self, call: Call, reason: str) -> list[Axes]:
        """Freeze every input of an operator, and return frozen axes for its outputs."""
        why = call.why(reason)
        for tensor in call.tensors:
            axes = self._axes.get(tensor) or self.follow(tensor, Origin.WEIGHTS)
            freeze((s for axis in axes for s in axis), why)
            if any(size_of(axis) > 1 for axis in axes):
                self.record.freezes[why] = None
        known = {id(t) for t in call.tensors}
        return [
            self._axes[t] if id(t) in known else [call.frozen(n, reason) for n in t.shape]
            for t in call.outputs
        ]

    def _carry_weight(self, call: Call) -> None:
        """Keep a weight's name for its transposed, cast and squeezed forms."""
        if call.name not in _MOVES or not call.tensors:
            return
        source = self._weights.get(call.tensors[0])
        if source is None:
            return
        old, new = call.tensors[0], call.outputs[0]
        if call.name in _VIEWS:
            dims = self._through_view(old, new, source[1])
        else:
            at = {id(axis): source[1][d] for d, axis in enumerate(self._axes[old])}
            dims = tuple(at.get(id(axis), -1) for axis in self._axes[new])
        if any(d >= 0 for d in dims):
            self._weights[new] = (source[0], dims)

    def _through_view(
        self, old: torch.Tensor, new: torch.Tensor, dims: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The weight's axis of each axis of a view; -1 where axes were split or merged.

        An axis stays itself where it has its size and its place in row-major order; one of size 1
        where it has its symbols.
        """
        if old.shape == new.shape:
            return dims
        places = zip(_places(old.shape), self._axes[old], dims, strict=True)
        known = {place if place[1] > 1 else flatten(axis): d for place, axis, d in places}
        return tuple(
            known.get(place if place[1] > 1 else flatten(axis), -1)
            for place, axis in zip(_places(new.shape), self._axes[new], strict=True)
        )

    def _origin(self, tensor: torch.Tensor) -> Origin:
        memory: Memory | None = self._memories.get(tensor)
        return Origin.WEIGHTS if memory is None else memory.origin

    def _carry_origin(self, use: Use, call: Call) -> None:
        """Set what outputs are computed from, also of tensors and views that are written to."""
        origin = self._source(use, call)
        shared: Memory | None = None
        for name in use.aliased:
            for tensor in filter(is_tensor, tree_leaves(call.get(name))):
                shared = self._memories.get(tensor)
                if name in use.written and shared is not None:
                    whole = name not in use.read and shared.size == tensor.numel()
                    shared.origin = origin if whole else max(shared.origin, origin)
        for tensor in call.outputs:
            if tensor not in self._memories:
                new = Memory(size=tensor.numel(), origin=origin)
                self._memories[tensor] = shared if use.views and shared is not None else new

    def _source(self, use: Use, call: Call) -> Origin:
        """The origin of a result: activations, else weights, else constants."""
        factor = call.get("other")
        if call.name == "aten::mul" and isinstance(factor, int | float) and factor == 0:
            return Origin.CONSTANT
        if all(name in use.read for name in call.arguments):
            return max(map(self._origin, call.tensors), default=Origin.CONSTANT)
        tensors = filter(is_tensor, tree_leaves([call.get(name) for name in use.read]))
        return max(map(self._origin, tensors), default=Origin.CONSTANT)


def _solid(axis: Axis) -> Axis:
    """The axis without factors of size 1, which views add and drop."""
    symbols = flatten(axis)
    return tuple(s for s in symbols if s.size > 1) or symbols


_VIEWS = {"aten::view", "aten::_unsafe_view", "aten::reshape"}
_MOVES = _VIEWS | {
    f"aten::{n}"
    for n in (
        "t",
        "transpose",
        "permute",
        "detach",
        "alias",
        "_to_copy",
        "clone",
        "squeeze",
        "unsqueeze",
        "expand",
        "_weight_norm_interface",
    )
}


_FACTORIES = {
    f"aten::{n}"
    for kind in ("zeros", "ones", "empty", "full")
    for n in (f"{kind}_like", f"new_{kind}", f"new_{kind}_strided")
}
_FILLS = {f"aten::{n}{suffix}" for n in ("copy", "fill", "zero") for suffix in ("", "_")}


@dataclass(frozen=True, kw_only=True)
class Use:
    """How an operator uses its arguments: which it reads, writes or returns a view of."""

    read: frozenset[str]  # their values matter: of ``zeros_like`` and of ``out=`` only the shape
    aliased: tuple[str, ...]  # they share memory with an output, or are written to
    written: frozenset[str]
    views: bool  # an output shares memory with an argument


@cache
def use_of(func: torch._ops.OpOverload) -> Use:
    """How an operator uses its arguments, read off its schema."""
    schema = func._schema
    aliased = [a for a in schema.arguments if a.alias_info is not None]
    ignored = {a.name for a in aliased if a.kwarg_only}
    if schema.name in _FACTORIES | _FILLS:
        ignored.add("self")
    return Use(
        read=frozenset(a.name for a in schema.arguments) - ignored,
        aliased=tuple(a.name for a in aliased),
        written=frozenset(a.name for a in aliased if a.is_write),
        views=any(r.alias_info is not None for r in schema.returns),
    )


def _places(shape: Sequence[int]) -> list[tuple[int, int]]:
    """The place of every axis in row-major order: the product of sizes before it, and its size."""
    before = accumulate(shape, operator.mul, initial=1)
    return list(zip(before, shape, strict=False))


def bind(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by the names of the operator's schema."""
    names = [a.name for a in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


@contextmanager
def module_stack(model: nn.Module, stack: list[str], tracer: Tracer | None) -> Iterator[None]:
    """Keep the name of the running module on a stack, and record module outputs for naming."""

    def enter(name: str, _module: nn.Module, _args: Any) -> None:
        stack.append(name)
        if tracer is not None:
            tracer.entered += 1
            tracer.runs.append(tracer.entered)

    def leave(name: str, _module: nn.Module, _args: Any, out: Any) -> None:
        stack.pop()
        if tracer is not None:
            tracer.runs.pop()
            known = [tracer._axes.get(t) for t in tree_leaves(out) if is_tensor(t)]
            tracer.record.outputs[name] = [axes for axes in known if axes]

    def handles() -> Iterator[RemovableHandle]:
        for name, module in model.named_modules():
            yield module.register_forward_pre_hook(partial(enter, name), prepend=True)
            yield module.register_forward_hook(partial(leave, name))

    with hooked(handles()), _STEPS.on():
        yield


@contextmanager
def _step_by_step() -> Iterator[None]:
    """Let attention and recurrent layers run as the operators that they consist of.

    Whether PyTorch takes a fused one depends on widths and dtypes, and so would what is seen.
    """
    mha, sdp, mkldnn = torch.backends.mha, torch.backends.cuda, torch.backends.mkldnn
    switches: list[tuple[bool, Callable[[bool], Any], bool]] = [
        (mha.get_fastpath_enabled(), mha.set_fastpath_enabled, False),
        (mkldnn.enabled, partial(setattr, mkldnn, "enabled"), False),  # type: ignore[list-item]
        (sdp.math_sdp_enabled(), sdp.enable_math_sdp, True),
        (sdp.flash_sdp_enabled(), sdp.enable_flash_sdp, False),
        (sdp.mem_efficient_sdp_enabled(), sdp.enable_mem_efficient_sdp, False),
        (sdp.cudnn_sdp_enabled(), sdp.enable_cudnn_sdp, False),
    ]
    with ExitStack() as before:
        for found, switch, wanted in switches:
            before.callback(switch, found)
            switch(wanted)
        yield


_STEPS = Switched(_step_by_step)


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    training: bool = False,
    mode: AbstractContextManager[Any] | None = None,
    sizes: bool = False,
) -> Record:
    """Trace one forward of a working copy, with ``training`` a second one that trains.

    In that one, modules that people wrote are in training mode: it may read weights that no forward
    in evaluation mode does. Both share the symbols of all weights. A dispatch ``mode`` is given
    every operator before it is traced. With ``sizes`` the numbers that calls are given are noted.
    """
    tracer = Tracer()
    reset(model)
    tracer.name_state(model)
    for tensor in tree_leaves(args):
        if is_tensor(tensor):
            axes = tracer.follow(tensor, Origin.ACTIVATION)
            protect((s for axis in axes for s in axis), "input")
    for trains in (False, True) if training else (False,):
        reset(model)
        tracer.name_state(model)
        tracer.name_attributes(model)
        train(model, trains)
        watched = module_stack(model, tracer.stack, tracer)
        with torch.no_grad(), watched, tracer, mode or nullcontext(), _noting(tracer, model, sizes):
            result = model(*args)
        for tensor in tensors_in(result):
            if tensor in tracer._axes:
                protect((s for axis in tracer.axes(tensor) for s in axis), "output")
    train(model, False)
    reset(model)
    return tracer.record


@contextmanager
def _noting(tracer: Tracer, model: nn.Module, sizes: bool) -> Iterator[None]:
    """Note the sizes that calls are given, and which attributes of modules they are."""
    if not sizes:
        yield
        return

    def running() -> tuple[str, int]:
        return (tracer.stack[-1], tracer.runs[-1]) if tracer.stack else ("", 0)

    recorder = SizeRecorder(running=running, axes=tracer._axes.get)
    with telling_attributes(model, recorder.mixed), EINOPS.on(), recorder:
        yield
    tracer.record.noted += recorder.noted
    tracer.record.mixed |= recorder.mixed


def train(model: nn.Module, mode: bool) -> None:
    """Set the mode of modules that people wrote; norms, dropout and neurons only evaluate."""
    for module in model.modules():
        known = (_BatchNorm, _DropoutNd, MultiheadAttention, base.MemoryModule)
        written = not isinstance(module, known)
        module.training = mode and written and not type(module).__module__.startswith("torch.nn.")

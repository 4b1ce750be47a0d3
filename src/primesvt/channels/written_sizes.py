"""Sizes that a forward writes into its calls: which number of a call is the length of which axis.

``x.reshape(T, B, N, self.c_hidden)`` holds a width as a number, which is wrong once channels are
gone. While a network is traced, every number that such a call is given is noted together with the
axis whose length it is, so that nothing has to be guessed from equal numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves

from primesvt._switches import Switched
from primesvt.channels.symbols import Axis, Symbol, flatten, size_of

Axes = list[Axis]
Path = tuple[int | str, ...]  # of a number in a call: argument, place in it, start or stop
Numbers = dict[Path, Any]


Code = tuple[str, int, str]  # function, instruction, call


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a call stands: the module that runs, and the place in the code of a function.

    Attributes:
        module: by name; the innermost one whose forward runs.
        function, call: their names.
        line: of the call, counted from the first of the function.
        step: the instruction, which tells two calls in one line apart.
    """

    module: str
    function: str = ""
    line: int = 0
    step: int = 0
    call: str = ""

    @property
    def code(self) -> Code:
        """Key of the place within its module: function, instruction and call."""
        return self.function, self.step, self.call

    def __str__(self) -> str:
        return f"{self.call} in line {self.line} of {self.function}" if self.function else self.call


@dataclass(frozen=True, kw_only=True)
class Length:
    """A number of a call as a length: of a whole axis, or of what stands before an offset on it."""

    axis: Axis
    offset: int | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """The numbers of one call, and the lengths that they are.

    Attributes:
        run: which forward of the module it belongs to, counted over the whole trace.
        numbers: as given; factors, such as those of an arithmetic operator, have no length.
        sources: the module attribute that a number was taken from, as it is.
    """

    place: Place
    run: int
    numbers: Numbers
    lengths: dict[Path, Length] = field(default_factory=dict)
    sources: dict[Path, tuple[str, str]] = field(default_factory=dict)


_LAST = ("shape", "size", "sizes")
_NEW = ("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor")
_MADE = ("zeros", "ones", "empty", "full", "rand", "randn")
_VIEWED = ("reshape", "view", "expand", "broadcast_to", "repeat")
_SPLIT = ("split", "split_with_sizes", "unsafe_split", "narrow", "__getitem__", "unflatten")
SIZED = frozenset((*_NEW, *_MADE, *_VIEWED, *_SPLIT, "einops"))
ARITHMETIC = frozenset(
    form.format(name)
    for name in ("mul", "div", "truediv", "floordiv", "floor_divide", "add", "sub", "pow")
    for form in ("{}", "{}_", "__{}__", "__r{}__", "__i{}__", "r{}")
)
ATTENTION = "scaled_dot_product_attention"
FACTORS = ARITHMETIC | {ATTENTION}


def numbers_of(call: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers:
    """The numbers of a call that may be lengths of channel axes, or factors made from them."""
    if call == ATTENTION:
        return dict(_leaves(_attention_scale(args, kwargs), ("scale",)))
    if call in ARITHMETIC:
        wanted: list[int | str] = [*range(len(args)), "other", "alpha", "exponent"]
    elif call in _MADE:
        wanted = [*range(1 if call == "full" else len(args)), "size"]
    elif call == "einops":  # pairs of a name and a length
        wanted = [*range(3, len(args)), "axes_lengths", "axes_dims"]
    elif call in ("unflatten", "narrow"):
        wanted = [*range(2, len(args)), "sizes", "start", "length"]
    elif call in ("split", "split_with_sizes", "unsafe_split"):
        wanted = [1, "split_size", "split_size_or_sections", "split_sizes"]
    else:
        last = 2 if call in ("new_full", "__getitem__") else len(args)
        wanted = [*range(1, last), *_LAST, "repeats"]
    found: Numbers = {}
    for key in wanted:
        value = kwargs.get(key) if isinstance(key, str) else args[key] if key < len(args) else None
        found.update(_leaves(value, (key,)))
    return found


def _attention_scale(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The factor of attention, which PyTorch takes from the width of the queries if not given."""
    scale, query = kwargs.get("scale"), kwargs.get("query", *args[:1])
    return 1 / query.shape[-1] ** 0.5 if scale is None else scale


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, slice):
        yield from _leaves(value.start, (*path, "start"))
        yield from _leaves(value.stop, (*path, "stop"))
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _leaves(part, (*path, i))
    elif isinstance(value, int | float | torch.SymInt) and not isinstance(value, bool):
        yield path, value


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Numbers
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call with other numbers at the given places."""
    listed, named = list(args), dict(kwargs)
    for path, value in numbers.items():
        holder: Any = named if isinstance(path[0], str) else listed
        holder[path[0]] = _with(holder[path[0]], path[1:], value) if path[1:] else value
    return tuple(listed), named


def _with(old: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    if isinstance(old, slice):
        start, stop = (value, old.stop) if path[0] == "start" else (old.start, value)
        return slice(start, stop, old.step)
    parts = list(old)
    parts[int(path[0])] = _with(parts[int(path[0])], path[1:], value)
    return parts if isinstance(old, list) else tuple(parts)


def lengths_of(
    call: str, numbers: Numbers, args: tuple[Any, ...], kwargs: dict[str, Any], axes: list[Axes]
) -> dict[Path, Length]:
    """The axis that each number of a call is the length of; ``axes`` are those of its first input
    tensor and then of its results.
    """
    given, *results = axes
    if call in ("split", "split_with_sizes", "unsafe_split"):
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        return {
            path: Length(axis=results[i][dim])
            for i, path in enumerate(numbers)
            if i < len(results) and isinstance(dim, int)
        }
    if call == "narrow":
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return _starts(numbers, dict.fromkeys(numbers, given[dim]), results[0][dim])
    if call == "__getitem__":
        return _starts(numbers, _indexed(args[1], given), None)
    if not results:
        return {}
    out = results[0]
    if call == "einops":
        named = _named_axes(numbers, args, kwargs, given, out)
        return {path: Length(axis=axis) for path, axis in named.items()}
    first = 0
    if call == "unflatten":
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if not isinstance(dim, int):
            return {}
        first = dim % max(len(given), 1)
    lengths = {
        path: Length(axis=out[first + i]) for i, path in enumerate(numbers) if first + i < len(out)
    }
    if call == "repeat":  # a count is a length where an axis of size 1 is repeated
        new = len(out) - len(given)
        once = [i < new or size_of(given[i - new]) == 1 for i in range(len(out))]
        lengths = {p: n for (p, n), fits in zip(lengths.items(), once, strict=False) if fits}
    return lengths


def _starts(numbers: Numbers, axes: dict[Path, Axis], length: Axis | None) -> dict[Path, Length]:
    """The lengths that the start and stop of a slice, or of ``narrow``, stand for."""
    found: dict[Path, Length] = {}
    for path, value in numbers.items():
        if path not in axes or isinstance(value, float):
            continue
        if length is not None and path in ((3,), ("length",)):
            found[path] = Length(axis=length)
            continue
        size = size_of(axes[path])
        offset = value + size if value < 0 else value
        if 0 < offset <= size and path[-1] != "length":
            found[path] = Length(axis=axes[path], offset=int(offset))
    return found


def _indexed(index: Any, given: Axes) -> dict[Path, Axis]:
    """The axis that each slice of an index cuts."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, Tensor | list) for p in parts):
        return {}
    used = sum(1 for p in parts if isinstance(p, int | slice))
    found: dict[Path, Axis] = {}
    dim = 0
    for i, part in enumerate(parts):
        if part is Ellipsis:
            dim += len(given) - used
        elif isinstance(part, slice):
            path: Path = (1, i) if isinstance(index, tuple) else (1,)
            found[(*path, "start")] = found[(*path, "stop")] = given[dim]
            dim += 1
        elif part is not None:
            dim += 1
    return found


def _named_axes(
    numbers: Numbers, args: tuple[Any, ...], kwargs: dict[str, Any], given: Axes, out: Axes
) -> dict[Path, Axis]:
    """The axis that each length in a pattern of einops stands for."""
    recipe = next(a for a in args if hasattr(a, "axis_name2elementary_axis"))
    place: dict[Path, int] = {}
    for path in numbers:
        pairs: Any = kwargs[path[0]] if isinstance(path[0], str) else args[path[0]]
        place[path] = recipe.axis_name2elementary_axis[pairs[path[1]][0]]
    sizes = dict(enumerate(recipe.elementary_axes_lengths))
    sizes |= {place[path]: int(number) for path, number in numbers.items()}
    for axis, (known, unknown) in zip(given, recipe.input_composition_known_unknown, strict=True):
        if unknown:
            sizes[unknown[0]] = size_of(axis) // prod(sizes[k] for k in known)
    parts: dict[int, Axis] = {}
    left = [sorted([*known, *unknown]) for known, unknown in recipe.input_composition_known_unknown]
    for axis, order in zip((*given, *out), (*left, *recipe.output_composite_axes), strict=True):
        parts |= _divided(axis, order, sizes)
    return {path: parts[at] for path, at in place.items() if at in parts}


def _divided(axis: Axis, order: Sequence[int], sizes: dict[int, int]) -> dict[int, Axis]:
    """An axis as the product of named ones, where its symbols are divided alike."""
    symbols = list(flatten(axis))
    found: dict[int, Axis] = {}
    for number in order:
        part: list[Symbol] = []
        while symbols and size_of(tuple(part)) < sizes[number]:
            part.append(symbols.pop(0))
        if not part and symbols and symbols[0].size == 1:
            part.append(symbols.pop(0))
        if size_of(tuple(part)) != sizes[number]:
            return found
        found[number] = tuple(part)
    return found


_EINOPS = (
    ("einops.einops", "_apply_recipe"),
    ("einops.layers", "_apply_recipe"),
    ("einops.layers.torch", "apply_for_scriptable_torch"),
)


@contextmanager
def _watching() -> Iterator[None]:
    """Show every rearrangement of einops to the modes in force, as a call named ``einops``.

    Its inner calls come too late: with wrong lengths its own comparison has failed before.
    """
    recipe: Any = getattr(sys.modules.get("einops.einops"), "TransformRecipe", None)
    if recipe is None or "axis_name2elementary_axis" not in recipe.__init__.__annotations__:
        yield  # not imported, or an old one, whose lengths have no names
        return
    with ExitStack() as plain:
        for path, name in _EINOPS:
            module = sys.modules.get(path)
            if (function := getattr(module, name, None)) is not None:
                plain.callback(setattr, module, name, function)
                setattr(module, name, _as_call(function))
        yield


EINOPS = Switched(_watching)


def _as_call(plain: Callable[..., Any]) -> Callable[..., Any]:
    def einops(*args: Any, **kwargs: Any) -> Any:
        tensors = tuple(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        if tensors and has_torch_function(tensors):
            return handle_torch_function(einops, tensors, *args, **kwargs)
        return plain(*args, **kwargs)

    return einops


def _stands_between(name: str) -> bool:
    """Whether a frame belongs to torch, einops or this package, and not to the user."""
    return name.split(".")[0] in ("torch", "einops") or name.startswith("primesvt.channels")


def caller() -> FrameType:
    """The frame of the code that makes a call, outside of torch and of this package's adapters."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _stands_between(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return frame


class AttributeNumber(int):
    """An integer attribute of a module that tells when it is used for anything but a size."""

    owner: tuple[str, str]
    mixed: set[tuple[str, str]]


def _telling(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: AttributeNumber, *args: Any) -> Any:
        self.mixed.add(self.owner)
        return plain(int(self), *args)

    return method


_TWO_SIDED = "add sub mul floordiv truediv mod pow divmod and or xor lshift rshift"
_ONE_SIDED = "eq ne lt le gt ge neg float round hash"
for _name in (
    *(f"__{side}{name}__" for name in _TWO_SIDED.split() for side in ("", "r")),
    *(f"__{name}__" for name in _ONE_SIDED.split()),
):
    setattr(AttributeNumber, _name, _telling(_name))


@contextmanager
def telling_attributes(model: nn.Module, mixed: set[tuple[str, str]]) -> Iterator[None]:
    """Let integer attributes of modules that people wrote tell how the forward uses them."""

    def number(value: int, owner: tuple[str, str]) -> int:
        if type(value) is not int or value < 2:
            return value
        made = AttributeNumber(value)
        made.owner, made.mixed = owner, mixed
        return made

    changed: list[tuple[dict[str, Any], str, Any, Any]] = []
    for path, module in model.named_modules():
        if type(module).__module__.startswith(("torch.", "spikingjelly.", "primesvt.models.")):
            continue
        own = vars(module)
        for name, old in list(own.items()):
            new: Any = old
            if type(old) is int:
                new = number(old, (path, name))
            elif type(old) in (list, tuple) and old and all(type(v) is int for v in old):
                new = type(old)(number(v, (path, f"{name}[{i}]")) for i, v in enumerate(old))
            if new is not old:
                own[name] = new
                changed.append((own, name, old, new))
    try:
        yield
    finally:
        for own, name, old, new in changed:
            if own.get(name) is new:
                own[name] = old


class SizeRecorder(TorchFunctionMode):
    """Notes the numbers of every call that takes sizes or factors, with the axes they belong to.

    Args:
        running: the name of the module that runs, and which of its forwards this is.
        axes: the axes of a traced tensor; ``None`` for any other.
    """

    def __init__(
        self,
        *,
        running: Callable[[], tuple[str, int]],
        axes: Callable[[Tensor], Axes | None],
    ) -> None:
        super().__init__()
        self.running, self.axes = running, axes
        self.noted: list[Written] = []
        self.mixed: set[tuple[str, str]] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = getattr(func, "__name__", "")
        if call not in SIZED and call not in FACTORS:
            self.mixed.update(
                n.owner for n in tree_leaves((args, kwargs)) if isinstance(n, AttributeNumber)
            )
            return func(*args, **kwargs)
        numbers = numbers_of(call, args, kwargs)
        sources = {p: n.owner for p, n in numbers.items() if isinstance(n, AttributeNumber)}
        numbers = {p: int(n) if p in sources else n for p, n in numbers.items()}
        args, kwargs = replaced(args, kwargs, {p: numbers[p] for p in sources})
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        before = [] if given is None else self.axes(given) or []
        result = func(*args, **kwargs)
        module, run = self.running()
        frame = caller()
        code = frame.f_code
        place = Place(
            module=module,
            function=code.co_qualname,
            line=frame.f_lineno - code.co_firstlineno,
            step=frame.f_lasti,
            call=call,
        )
        made = [self.axes(t) for t in tree_leaves(result) if isinstance(t, Tensor)]
        axes = [before, *(a for a in made if a is not None)]
        unknown = isinstance(given, Tensor) and given.ndim > 0 and not before
        known = call in SIZED and None not in made and not unknown
        lengths = lengths_of(call, numbers, args, kwargs, axes) if known else {}
        self.noted.append(
            Written(place=place, run=run, numbers=numbers, lengths=lengths, sources=sources)
        )
        self.mixed.update(owner for path, owner in sources.items() if path not in lengths)
        return result

"""Give a forward other sizes than its code computes: the adapter of a module whose widths changed.

The module's class is replaced by a subclass of it. While its forward runs, the calls that take
sizes or factors are recognised by their place in the code, and are given the numbers that the
network has after channels were removed. A call that the trace has not seen is an error.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from primesvt.channels.rewriting import EVERY, Rewrite, Sizes
from primesvt.channels.written_sizes import (
    EINOPS,
    FACTORS,
    SIZED,
    Code,
    Path,
    Place,
    caller,
    numbers_of,
    replaced,
)

Replacements = tuple[tuple[Path, int | float], ...]


@dataclass(kw_only=True)
class Table:
    """The numbers that the calls of one module are given, by place in the code and by turn.

    ``turns`` holds one entry where all turns are alike, and ``counts`` how many the trace has seen.
    ``seen`` are the places that the trace reached; a call with sizes at any other place of these
    functions is refused.
    """

    module: str
    turns: dict[Code, list[Replacements]]
    seen: frozenset[Code]
    counts: dict[Code, int] = field(default_factory=dict)
    constants: tuple[Rewrite, ...] = ()
    calls: frozenset[str] = field(init=False)
    functions: frozenset[str] = field(init=False)

    @property
    def signature(self) -> str:
        """Write all numbers as one text, by which networks with other sizes are told apart."""
        return repr(sorted(self.turns.items()))

    def pins(
        self, frame: FrameType, call: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether a call has a factor that may depend on a width, where others of the module do.

        Numbers that the code spells out follow nothing.
        """
        if not self.constants or call not in FACTORS:
            return False
        numbers = numbers_of(call, args, kwargs).values()
        return any(n not in frame.f_code.co_consts for n in numbers)

    def __post_init__(self) -> None:
        self.functions = frozenset(function for function, _, _ in self.seen)
        self.calls = SIZED | (FACTORS if self.constants else frozenset())


def install(
    model: nn.Module, rewrites: Iterable[Rewrite], seen: Iterable[Place], sizes: Sizes
) -> None:
    """Set the attributes of a network and the numbers of its calls to what the widths ask for."""
    by_module: dict[str, list[Rewrite]] = {}
    for rewrite in rewrites:
        if rewrite.kind == "attribute":
            _set(model.get_submodule(rewrite.place.module), rewrite.name, rewrite.value(sizes))
        elif not rewrite.held:
            by_module.setdefault(rewrite.place.module, []).append(rewrite)
    places: dict[str, set[Code]] = {}
    for place in seen:
        places.setdefault(place.module, set()).add(place.code)
    changed = {r.place.function for found in by_module.values() for r in found}
    for path, codes in places.items():  # or what runs inside would be given the outer one's numbers
        if any(function in changed for function, _, _ in codes):
            by_module.setdefault(path, [])
    for path, found in by_module.items():
        module = model.get_submodule(path)
        old: Table | None = vars(module).get(_TABLE)
        known = {r.key for r in found}
        kept = [r for r in old.constants if r.key not in known] if old is not None else []
        vars(module)[_TABLE] = _table(path, [*found, *kept], frozenset(places.get(path, ())), sizes)
        module.__class__ = adapted(type(module))


def installed(model: nn.Module, rewrite: Rewrite) -> bool:
    """Whether an earlier cut has already given this number to a network's forward."""
    table: Table | None = vars(model.get_submodule(rewrite.place.module)).get(_TABLE)
    turns = table.turns.get(rewrite.place.code, []) if table is not None else []
    return any(path == rewrite.argument for numbers in turns for path, _ in numbers)


def _table(module: str, rewrites: Sequence[Rewrite], seen: frozenset[Code], sizes: Sizes) -> Table:
    found: dict[Code, dict[int, dict[Path, int | float]]] = {}
    counts: dict[Code, int] = {}
    for r in rewrites:
        counts[r.place.code] = r.turns
        found.setdefault(r.place.code, {}).setdefault(r.turn, {})[r.argument] = r.value(sizes)
    turns = {}
    for key, by_turn in found.items():
        always = by_turn.pop(EVERY, {})
        count = counts[key] if by_turn else 1
        turns[key] = [tuple({**always, **by_turn.get(t, {})}.items()) for t in range(count)]
    constants = tuple(r for r in rewrites if r.kind == "constant")
    return Table(
        module=module, turns=turns, seen=seen | turns.keys(), counts=counts, constants=constants
    )


def _set(module: nn.Module, name: str, value: int | float) -> None:
    """Set an attribute, or an item of one that is a list or tuple (``dims[1]``)."""
    name, _, rest = name.partition("[")
    if not rest:
        setattr(module, name, value)
        return
    old = getattr(module, name)
    parts = list(old)
    parts[int(rest[:-1])] = value
    setattr(module, name, type(old)(parts))


_TABLE = "_sizes_after_pruning"


class Adapted(nn.Module):
    """Mixin for a module whose forward is given other sizes than its code computes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the module's own class, with its sizes rewritten."""
        table: Table | None = vars(self).get(_TABLE)
        if table is None:  # made anew from the class: it has all its channels
            return super().forward(*args, **kwargs)
        with _Running(table):
            return super().forward(*args, **kwargs)

    def __init_subclass__(cls, **_: Any) -> None:
        """Skip the ``__init_subclass__`` of the module's own class when an adapter is made."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        make, args, *rest = made
        own = type(self).__mro__[2]
        args = tuple(own if each is type(self) else each for each in args)
        state = rest[0] if rest else None
        return _made, (make, args), (vars(self)[_TABLE], state)

    def __setstate__(self, state: Any) -> None:
        table, own = state
        if own is not None:
            super().__setstate__(own)  # type: ignore[no-untyped-call]
        vars(self)[_TABLE] = table


def adapted(cls: Any) -> Any:
    """Return the subclass of a module's class whose forward is given other sizes."""
    if issubclass(cls, Adapted):
        return cls
    if cls not in _adapted:
        _adapted[cls] = _adapter(cls)
    return _adapted[cls]


_adapted: dict[type, Any] = {}


def _adapter(cls: Any) -> Any:
    facts = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if hasattr(cls, "__deepcopy__"):
        facts["__deepcopy__"] = _deep_copy
    made = type(cls)(cls.__name__, (Adapted, cls), facts)
    made.forward = torch.compiler.disable(made.forward)
    return made


def _made(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Build an adapted module without its state, which ``copy`` and ``pickle`` set afterwards."""
    module = make(*args)
    module.__class__ = adapted(type(module))
    return module


def _deep_copy(self: Any, memo: dict[int, Any]) -> Any:
    """Copy a module as its own class does, which may know nothing of the adapter's numbers."""
    own: Any = type(self).__mro__[2]
    module = own.__deepcopy__(self, memo)
    module.__class__ = adapted(type(module))
    vars(module)[_TABLE] = copy.deepcopy(vars(self)[_TABLE])
    return module


def can_be_adapted(module: nn.Module) -> bool:
    """Whether a module can have an adapter: not one of ``torch.fx``, whose forward is generated."""
    return not isinstance(module, torch.fx.GraphModule)


@dataclass(kw_only=True)
class Observation:
    """Calls that a pruned forward reached, and numbers that its own code computed wrongly there.

    Both hold module and code, and the second also turn and argument.
    """

    reached: set[tuple[Any, ...]] = field(default_factory=set)
    wrong: set[tuple[Any, ...]] = field(default_factory=set)

    def needs(self, rewrite: Rewrite) -> bool:
        """Whether a rewrite is needed: its call computes a wrong number, or was never reached.

        Factors are kept only where they were seen to change.
        """
        at = (rewrite.place.module, rewrite.place.code)
        if at not in self.reached:
            return rewrite.kind == "call"
        turns = {w[2] for w in self.wrong if (*w[:2], w[3]) == (*at, rewrite.argument)}
        return rewrite.turn in turns if rewrite.turn != EVERY else bool(turns)


@contextmanager
def observed() -> Iterator[Observation]:
    """Record in a ``with`` block which numbers the adapters had to correct."""
    _threads.observation = Observation()
    try:
        yield _threads.observation
    finally:
        _threads.observation = None


class _Mode(TorchFunctionMode):
    """Replaces the numbers in the calls of the module whose forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[Table, dict[Code, list[tuple[Any, ...]]]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        table, _ = self.stack[-1]
        call = getattr(func, "__name__", "")
        if call not in table.calls:
            return func(*args, **kwargs)
        frame = caller()
        key = (frame.f_code.co_qualname, frame.f_lasti, call)
        if key in table.turns:
            args, kwargs = self._rewritten(func, key, frame, args, kwargs)
        elif (
            key not in table.seen
            and key[0] in table.functions
            and (_sizes(call, args, kwargs) or table.pins(frame, call, args, kwargs))
        ):
            raise _unknown(frame, call, "was not reached when the network was traced")
        return func(*args, **kwargs)

    def _rewritten(
        self, func: Any, key: Code, frame: FrameType, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with the numbers that the table has for it."""
        table, reached = self.stack[-1]
        turns, call = table.turns[key], key[2]
        before = reached.setdefault(key, [])
        turn = len(before)
        if len(turns) > 1 and turn >= len(turns):
            raise _unknown(frame, call, "was reached more often than when the network was traced")
        numbers = turns[turn if len(turns) > 1 else 0]
        given = numbers_of(call, args, kwargs)
        if not all(path in given for path, _ in numbers):
            raise _unknown(frame, call, "has other arguments than when the network was traced")
        before.append(tuple(given[path] for path, _ in numbers))
        if turn >= table.counts[key] and _is_new(before):
            raise _unknown(frame, call, "is given other sizes than before, in a later turn")
        right = replaced(args, kwargs, dict(numbers))
        if (observation := getattr(_threads, "observation", None)) is not None:
            at = (table.module, key)
            observation.reached.add(at)
            if not _same(func, (args, kwargs), right, list(before[-1]), numbers):
                wrong = {p for p, value in numbers if given[p] != value}
                observation.wrong.update((*at, turn, p) for p in wrong)
        return right


def _is_new(given: Sequence[tuple[Any, ...]]) -> bool:
    """Whether the last numbers that a place was given differ from all before."""
    *before, last = given
    return all(type(n) in (int, float) for n in last) and last not in before


def _sizes(call: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is given whole numbers above 1, which may be channel counts."""
    numbers = numbers_of(call, args, kwargs).values() if call not in FACTORS else ()
    return any(isinstance(n, int) and n > 1 for n in numbers)


def _same(
    func: Any, own: tuple[Any, Any], right: tuple[Any, Any], given: list[Any], wanted: Replacements
) -> bool:
    """Check whether a call gives the same shape with its own numbers as with the right ones."""
    if given == [value for _, value in wanted]:
        return True
    if all(value != -1 for _, value in wanted):
        return False
    try:
        return bool(func(*own[0], **own[1]).shape == func(*right[0], **right[1]).shape)
    except RuntimeError:
        return False


def _unknown(frame: FrameType, call: str, what: str) -> ValueError:
    return ValueError(
        f"{call} in line {frame.f_lineno} of {frame.f_code.co_qualname} {what}, "
        "so its sizes after pruning are not known; trace the unpruned network with an input, "
        "and in a mode, that takes this path"
    )


_threads = threading.local()


class _Running:
    """Context in which the calls of a module are given the numbers of its table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.outermost = False

    def __enter__(self) -> None:
        mode: _Mode | None = getattr(_threads, "mode", None)
        self.outermost = mode is None
        if mode is None:
            self.einops = EINOPS.on()
            self.einops.__enter__()
            mode = _threads.mode = _Mode()
            mode.__enter__()  # type: ignore[no-untyped-call]
        mode.stack.append((self.table, {}))

    def __exit__(self, *found: Any) -> None:
        mode: _Mode = _threads.mode
        mode.stack.pop()
        if self.outermost:
            _threads.mode = None
            mode.__exit__(*found)  # type: ignore[no-untyped-call]
            self.einops.__exit__(*found)

"""Rewrite sizes in a forward: give calls the widths that a network has after channels are removed.

Forwards hold widths as numbers: attributes (``self.c_hidden``), and expressions such as
``C // self.heads`` of another tensor's width. The trace knows which axis each number is the length
of, so what it has to be after a cut follows exactly. Attributes that are used for nothing but such
sizes are set. Every other call is given its numbers by an adapter around the forward of its module,
which finds the call by its place in the code and by how often it was reached before. Factors that
follow a width, such as ``(C // h) ** -0.5``, keep the value that they had in the traced network.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isclose
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from primesvt.channels.layout import Layout
from primesvt.channels.symbols import Axis
from primesvt.channels.written_sizes import (
    ARITHMETIC,
    SIZED,
    Code,
    Length,
    Path,
    Place,
    Written,
    caller,
    numbers_of,
    replaced,
)

Sizes = Mapping[int, int]
EVERY = -1  # every time that a place is reached


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """One number written into a forward, and what it has to be at any widths.

    Attributes:
        kind: ``attribute`` of a module, argument of a ``call``, or a ``constant`` factor that
            keeps its value.
        place: of the call; of an attribute only the module counts.
        name: the attribute, or the call.
        argument: which number of the call.
        turn: how often the place was reached before in one forward of the module, or ``EVERY``.
        turns: how often it is reached in all.
        before: the number in the traced network.
        layout: of the axis it is the length of; without one the number is what is left (-1).
    """

    kind: Literal["attribute", "call", "constant"]
    place: Place
    name: str
    argument: Path = ()
    turn: int = EVERY
    turns: int = 1
    before: int | float
    layout: Layout | None = None

    def value(self, sizes: Sizes) -> int | float:
        """The number at the given widths."""
        if self.kind == "constant":
            return self.before
        return -1 if self.layout is None else self.layout.length(sizes)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells two rewrites of one network apart."""
        return self.kind, self.place, self.name, self.argument, self.turn

    def __str__(self) -> str:
        where = f" of module '{self.place.module}'" if self.place.module else ""
        if self.kind == "attribute":
            return f"attribute {self.name}{where}"
        return f"{self.place}{where}"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What is known about the axes of a trace: their layouts, and which symbols matter.

    Attributes:
        layout: of an axis.
        fixed: symbols of axes of weights, whose sizes follow from the weights alone.
        channels: those of them along which something can be removed.
        sizes: of every symbol, as traced.
    """

    layout: Callable[[Axis], Layout]
    fixed: Set[int]
    channels: Set[int]
    sizes: Sizes

    def find(self, length: Length) -> Layout | None:
        """The layout of an axis, or of the part of it that an offset ends; ``None`` if unknown."""
        whole = self.layout(length.axis)
        return whole if length.offset is None else _start(whole, length.offset, self.sizes)


def _start(layout: Layout, offset: int, sizes: Sizes) -> Layout | None:
    """The layout of what stands before an offset, where one of its parts begins there."""
    if offset == layout.length(sizes):
        return layout
    if layout.kind == "concat":
        before: list[Layout] = []
        for part in layout.parts:
            length = part.length(sizes)
            if offset < length:
                inner = _start(part, offset, sizes) if offset else None
                if offset and inner is None:
                    return None
                return Layout(kind="concat", parts=(*before, *([inner] if inner else [])))
            before.append(part)
            offset -= length
    if layout.kind == "product":
        outer, *inner_parts = layout.parts
        block = Layout(kind="product", parts=tuple(inner_parts)).length(sizes)
        first = _start(outer, offset // block, sizes) if offset % block == 0 else None
        return first and Layout(kind="product", parts=(first, *inner_parts))
    return None


def candidates(
    noted: Sequence[Written], mixed: Set[tuple[str, str]], known: Lengths
) -> tuple[Rewrite, ...]:
    """Everything that may have to be rewritten after a cut, from what a trace noted.

    An attribute is set where all its uses are sizes of one layout, and nothing else; factors are
    all listed, as only a cut shows which of them follow a width.
    """
    calls: dict[Place, dict[int, list[dict[Path, Rewrite]]]] = {}
    uses: dict[tuple[str, str], list[tuple[int, Layout | None]]] = {}
    for written in noted:
        runs = calls.setdefault(written.place, {})
        turns = runs.setdefault(written.run, [])
        turns.append(_rewrites(written, len(turns), known))
        for path, owner in written.sources.items():
            found = turns[-1].get(path)
            own = found is not None and owner[0] == written.place.module  # no other module reads it
            layout = found.layout if found is not None and own else None
            uses.setdefault(owner, []).append((written.numbers[path], layout))
    attributes = {
        owner: Rewrite(
            kind="attribute",
            place=Place(module=owner[0]),
            name=owner[1],
            before=found[0][0],
            layout=found[0][1],
        )
        for owner, found in uses.items()
        if owner not in mixed and found[0][1] is not None and len({f[1] for f in found}) == 1
    }
    return (*attributes.values(), *(r for place in calls for r in _agreed(calls[place])))


def _rewrites(written: Written, turn: int, known: Lengths) -> dict[Path, Rewrite]:
    """The numbers of one call that depend on channels, or may."""
    common: dict[str, Any] = {"place": written.place, "name": written.place.call, "turn": turn}
    if written.place.call in ARITHMETIC:
        return {
            path: Rewrite(kind="constant", argument=path, before=value, **common)
            for path, value in written.numbers.items()
        }
    found: dict[Path, Rewrite] = {}
    for path, length in written.lengths.items():
        layout = known.find(length)
        if layout is None or not layout.symbols() & known.channels:
            continue
        if not layout.symbols() <= known.fixed:
            layout = None  # together with tokens or samples: what the other sizes leave
        found[path] = Rewrite(
            kind="call", argument=path, before=written.numbers[path], layout=layout, **common
        )
    left = [p for p, n in written.numbers.items() if n == -1 and p not in found]
    rest = [p for p, r in found.items() if r.layout is None]
    if written.place.call not in ("reshape", "view") or len(rest) + len(left) > 1:
        found = {p: r for p, r in found.items() if r.layout is not None}
    if not rest:  # a number that is left open is right at any width
        found = {p: r for p, r in found.items() if r.before != -1}
    return found


def _agreed(runs: Mapping[int, list[dict[Path, Rewrite]]]) -> list[Rewrite]:
    """The rewrites of one place where all forwards of its module agree about them."""

    def facts(turn: Mapping[Path, Rewrite]) -> dict[Path, tuple[Any, ...]]:
        constant = {p: r.before for p, r in turn.items() if r.kind == "constant"}
        return {p: (r.layout, constant.get(p)) for p, r in turn.items()}

    longest = max(runs.values(), key=len)
    for turns in runs.values():
        if any(facts(a) != facts(b) for a, b in zip(turns, longest, strict=False)):
            return []
    if all(facts(turn) == facts(longest[0]) for turn in longest):
        return [replace(r, turn=EVERY, turns=len(longest)) for r in longest[0].values()]
    return [replace(r, turns=len(longest)) for turn in longest for r in turn.values()]


def carried_over(
    rewrites: Iterable[Rewrite],
    own: Iterable[Rewrite],
    symbols: Mapping[int, int],
    sizes: Sizes,
) -> tuple[Rewrite, ...]:
    """The rewrites of one trace for another one of the same network, such as at another resolution.

    What the other trace would rewrite itself does not count, except for the rounding of factors.

    Args:
        rewrites: of the first trace.
        own: of the other one.
        symbols: of the other trace, by those of the first.
        sizes: of the symbols of the first.
    """
    values = {r.key: r.before for r in own if r.kind == "constant"}
    found = []
    for r in rewrites:
        if r.layout is not None:
            missing = r.layout.symbols() - symbols.keys()
            if missing and (any(sizes[n] > 1 for n in missing) or missing == r.layout.symbols()):
                continue  # the other trace has no such axis, and would not cut it
            r = replace(r, layout=r.layout.renumbered(symbols))
        elif isclose(values.get(r.key, r.before), r.before, rel_tol=1e-5):
            r = replace(r, before=values.get(r.key, r.before))
        found.append(r)
    return tuple(found)


def describe_rewrites(rewrites: Iterable[Rewrite], sizes: Sizes) -> tuple[dict[str, Any], ...]:
    """Plain facts about the rewrites of a network of the given widths, as a plan keeps them.

    Example:
        >>> hidden = Layout(kind="symbol", symbol=3)
        >>> size = Rewrite(
        ...     kind="attribute", place=Place(module="mlp"), name="width", before=64, layout=hidden
        ... )
        >>> describe_rewrites([size], {3: 48})
        ({'module': 'mlp', 'kind': 'attribute', 'name': 'width', 'before': 64, 'after': 48},)
    """
    found = []
    for rewrite in rewrites:
        after = rewrite.value(sizes)
        if after == rewrite.before and rewrite.kind != "constant":
            continue
        name = rewrite.name if rewrite.kind == "attribute" else str(rewrite.place)
        found.append(
            {
                "module": rewrite.place.module,
                "kind": rewrite.kind,
                "name": name,
                "before": rewrite.before,
                "after": after,
            }
        )
    return tuple(found)


def rewrite_notes(rewrites: Sequence[Rewrite]) -> tuple[str, ...]:
    """Sentences on what a forward is given instead of the sizes and factors that it computes."""
    calls = [r for r in rewrites if r.kind == "call"]
    attributes = [r for r in rewrites if r.kind == "attribute"]
    notes = []
    if calls or attributes:
        modules = len({r.place.module for r in (*calls, *attributes)})
        parts = [f"{len(attributes)} attributes are set"] if attributes else []
        parts += [f"{len(calls)} numbers of calls are replaced while it runs"] if calls else []
        notes.append(
            f"The forward of {modules} modules has widths written into it: after a cut "
            f"{' and '.join(parts)}."
        )
    for r in rewrites:
        if r.kind == "constant":
            where = f" of module '{r.place.module}'" if r.place.module else ""
            notes.append(
                f"The factor {r.before:.6g} ({r.place}{where}) follows a width and keeps its value."
            )
    return tuple(notes)


Replacements = tuple[tuple[Path, int | float], ...]


@dataclass(kw_only=True)
class Table:
    """What the adapter of one module does: numbers by place in the code and by turn.

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
        """The numbers, for comparing the tables of two networks of one class."""
        return repr(sorted(self.turns.items()))

    def pins(
        self, frame: FrameType, call: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether an operator has a factor that may follow a width, as others of the module do.

        Numbers that the code spells out follow nothing.
        """
        if not self.constants or call not in ARITHMETIC:
            return False
        numbers = numbers_of(call, args, kwargs).values()
        return any(n not in frame.f_code.co_consts for n in numbers)

    def __post_init__(self) -> None:
        self.functions = frozenset(function for function, _, _ in self.seen)
        self.calls = SIZED | (ARITHMETIC if self.constants else frozenset())


def install(
    model: nn.Module, rewrites: Iterable[Rewrite], seen: Iterable[Place], sizes: Sizes
) -> None:
    """Set attributes, and give modules the adapters that their calls need at the given widths."""
    by_module: dict[str, list[Rewrite]] = {}
    for rewrite in rewrites:
        if rewrite.kind == "attribute":
            _set(model.get_submodule(rewrite.place.module), rewrite.name, rewrite.value(sizes))
        else:
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


# --- the adapter ----------------------------------------------------------------------------

_TABLE = "_sizes_after_pruning"


class Adapted(nn.Module):
    """Mixin of a module whose forward is given other sizes than its code computes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the module's own class, with its sizes rewritten."""
        table: Table | None = vars(self).get(_TABLE)
        if table is None:  # made anew from the class: it has all its channels
            return super().forward(*args, **kwargs)
        with _Running(table):
            return super().forward(*args, **kwargs)

    def __init_subclass__(cls, **_: Any) -> None:
        """Leave the hook of the module's own class alone: to its author, no new class is made."""

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
    """The class of a module with an adapter: the module's own one, named as it is."""
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
    """A module with an adapter before its state is set, as copying and unpickling need it."""
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
    """Whether the forward of a module can be given an adapter: not where it is generated code."""
    return not isinstance(module, torch.fx.GraphModule)


@dataclass(kw_only=True)
class Observation:
    """Which calls a forward reaches, and which of their numbers its own code computes wrongly.

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
    """Note what adapters do in a ``with`` block."""
    _threads.observation = Observation()
    try:
        yield _threads.observation
    finally:
        _threads.observation = None


class _Mode(TorchFunctionMode):
    """Gives the calls of the running module their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[Table, dict[Code, list[tuple[Any, ...]]]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        table, reached = self.stack[-1]
        call = getattr(func, "__name__", "")
        if call not in table.calls:
            return func(*args, **kwargs)
        frame = caller()
        key = (frame.f_code.co_qualname, frame.f_lasti, call)
        turns = table.turns.get(key)
        if turns is not None:
            before = reached.setdefault(key, [])
            turn = len(before)
            if len(turns) > 1 and turn >= len(turns):
                raise _unknown(
                    frame, call, "was reached more often than when the network was traced"
                )
            numbers = turns[turn if len(turns) > 1 else 0]
            given = numbers_of(call, args, kwargs)
            if not all(path in given for path, _ in numbers):
                raise _unknown(frame, call, "has other arguments than when the network was traced")
            before.append(tuple(given[path] for path, _ in numbers))
            if turn >= table.counts[key] and _is_new(before):
                raise _unknown(frame, call, "is given other sizes than before, in a later turn")
            own, (args, kwargs) = (args, kwargs), replaced(args, kwargs, dict(numbers))
            if (observation := getattr(_threads, "observation", None)) is not None:
                at = (table.module, key)
                observation.reached.add(at)
                if not _same(func, own, (args, kwargs), [given[p] for p, _ in numbers], numbers):
                    wrong = {p for p, value in numbers if given[p] != value}
                    observation.wrong.update((*at, turn, p) for p in wrong)
        elif (
            key not in table.seen
            and key[0] in table.functions
            and (_sizes(call, args, kwargs) or table.pins(frame, call, args, kwargs))
        ):
            raise _unknown(frame, call, "was not reached when the network was traced")
        return func(*args, **kwargs)


def _is_new(given: Sequence[tuple[Any, ...]]) -> bool:
    """Whether a place is given numbers for the first time that it was not given before."""
    *before, last = given
    return all(type(n) in (int, float) for n in last) and last not in before


def _sizes(call: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is given sizes that channels may have."""
    numbers = numbers_of(call, args, kwargs).values() if call not in ARITHMETIC else ()
    return any(isinstance(n, int) and n > 1 for n in numbers)


def _same(
    func: Any, own: tuple[Any, Any], right: tuple[Any, Any], given: list[Any], wanted: Replacements
) -> bool:
    """Whether a call does the same with the numbers that the code computes."""
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
    """Makes a module's table the one in use while its forward runs."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.outermost = False

    def __enter__(self) -> None:
        mode: _Mode | None = getattr(_threads, "mode", None)
        self.outermost = mode is None
        if mode is None:
            mode = _threads.mode = _Mode()
            mode.__enter__()  # type: ignore[no-untyped-call]
        mode.stack.append((self.table, {}))

    def __exit__(self, *found: Any) -> None:
        mode: _Mode = _threads.mode
        mode.stack.pop()
        if self.outermost:
            _threads.mode = None
            mode.__exit__(*found)  # type: ignore[no-untyped-call]

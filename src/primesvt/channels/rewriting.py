"""Which numbers in a forward have to change when channels are removed, and what they become.

Forwards hold widths as numbers: attributes (``self.c_hidden``), and expressions such as
``C // self.heads`` of another tensor's width. The trace knows which axis each number is the length
of, so what it has to be after a cut follows exactly. Attributes that are used for nothing but such
sizes are set; all other calls are given their numbers while they run (``adapter``). Factors that
follow a width, such as ``(C // h) ** -0.5``, keep the value that they had in the traced network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import isclose
from typing import Any, Literal

from primesvt.channels.layout import Layout
from primesvt.channels.symbols import Axis
from primesvt.channels.written_sizes import FACTORS, Length, Path, Place, Written

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
        """What the number has to be at the given widths."""
        if self.kind == "constant":
            return self.before
        return -1 if self.layout is None else self.layout.length(sizes)

    @property
    def held(self) -> bool:
        """Whether it is a factor that a module holds itself, so that no call is given it."""
        return self.kind == "constant" and not self.place.function

    @property
    def key(self) -> tuple[Any, ...]:
        """Identity of a rewrite within one network: kind, place, name, argument and turn."""
        return self.kind, self.place, self.name, self.argument, self.turn

    def __str__(self) -> str:
        where = f" of module '{self.place.module}'" if self.place.module else ""
        if self.kind == "attribute":
            return f"attribute {self.name}{where}"
        return f"{self.place}{where}"


def held(module: str, name: str, value: float) -> Rewrite:
    """A factor that a module holds itself, and keeps at the value from before a cut."""
    return Rewrite(kind="constant", place=Place(module=module, call=name), name=name, before=value)


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
    """Find the layout of an axis up to an offset; ``None`` where the offset is inside a part."""
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
    """List every number of a traced forward that may have to be rewritten after a cut.

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
    if written.place.call in FACTORS:
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
    """Express the rewrites that one trace found in the symbols of another trace of the network.

    The other one may be at another resolution. What it would rewrite itself does not count, except
    for the rounding of factors.

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
            layout = r.layout.renumbered(symbols)
            if layout is None or any(sizes[n] > 1 for n in missing):
                continue  # the other trace has no such axis, and would not cut it
            r = replace(r, layout=layout)
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
    """Describe for the user which sizes and factors of a forward are replaced, in sentences."""
    calls = [r for r in rewrites if r.kind == "call"]
    attributes = [r for r in rewrites if r.kind == "attribute"]
    notes = []
    if calls or attributes:
        modules = len({r.place.module for r in (*calls, *attributes)})
        done = [
            f"{len(found)} {one if len(found) == 1 else many}"
            for found, one, many in (
                (attributes, "attribute set", "attributes set"),
                (calls, "number of a call replaced", "numbers of calls replaced as it runs"),
            )
            if found
        ]
        notes.append(
            f"Widths are written into the forward of {modules} module{'s' * (modules != 1)}; after "
            f"a cut: {' and '.join(done)}."
        )
    for r in rewrites:
        if r.kind == "constant":
            where = f" of module '{r.place.module}'" if r.place.module else ""
            notes.append(
                f"The factor {r.before:.6g} ({r.place}{where}) follows a width and keeps its value."
            )
    return tuple(notes)

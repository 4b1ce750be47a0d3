"""``verify``: check on a copy that removing channels equals silencing them where they are read.

Foreign forwards may have sizes written into them, or derive constants from a width. Neither shows
in a trace, so a small part of every group is cut on one copy, silenced where it is read on
another, and every intermediate result of the two runs is compared. Only activations are silenced:
what a forward computes from weights alone stays as it is, and has to come out the same after a cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from primesvt.channels.graph import ChannelGraph, ChannelGroup, Ids, KeptChannels
from primesvt.channels.layout import Layout
from primesvt.channels.rewriting import carried_over
from primesvt.channels.silence import CRASH, Compared, Failure, Silenced, agree
from primesvt.channels.surgery import check_widths, remove_channels
from primesvt.channels.symbols import Axis
from primesvt.channels.tracer import bind, module_stack, run, train, use_of
from primesvt.channels.tracing import Builder
from primesvt.models.forward import example_args, shorten, state_tensors, unwrap, working_copy
from primesvt.models.multihead import take_widths_from_weights
from primesvt.models.neurons import neurons
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import (
    drawing_alike,
    held_tensors,
    reset,
    settle,
    tensors_in,
    unrepeatable,
)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A group that cannot be cut although its trace allows it."""

    group: str
    module: str
    reason: str
    fix: str

    def __str__(self) -> str:
        where = f" in module '{self.module}'" if self.module else ""
        return f"{self.group}: {self.reason}{where}; {self.fix}"


def verify(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Sequence[str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Refusal]:
    """Find the channel groups whose removal would change what the rest of a network computes.

    A part of every group is cut on a copy, in double precision, and every intermediate result is
    compared with that of the original in which all readers of the channels see zeros. Sizes and
    factors that the forward computes wrongly are replaced as they are in the pruned network; where
    that is not enough, the forward fails or a result differs. Networks of users are also checked in
    training mode and, where something is replaced, with other inputs.

    Args:
        model: the network that was traced; not changed.
        graph: its channel groups.
        groups: names of those to check; all free ones when not given.
        progress: called with the rounds done and to do.

    Returns:
        One refusal for every group that cannot be cut; none means that all cuts are exact.

    Raises:
        ValueError: the graph belongs to a network of other widths.

    Example:
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> verify(net, trace(net, torch.zeros(1, 4)))
        []
    """
    names = (
        list(groups)
        if groups is not None
        else [g.name for g in graph.groups if g.status == "free" and g.kind != "heads"]
    )
    names = [n for n in names if graph[n].size > 1]
    network = unwrap(model)
    check_widths({**held_tensors(network), **state_tensors(network)}, graph)
    prober = _TracedCopy(model=model, graph=graph)
    precise = "in double precision"
    refusals = [_unlike(n, prober, precise) for n in names if not prober.traces_alike(graph[n])]
    names = [n for n in names if n not in {r.group for r in refusals}]
    inner = [n for n in names if graph[n].kind != "stream"]
    streams = [n for n in names if graph[n].kind == "stream"]
    rounds = [*_rounds(inner), *((1 / 2, [n]) for n in streams), (ONE_LEFT, streams)]
    for done, (share, chosen) in enumerate(rounds, start=1):
        refused = {r.group for r in refusals}
        prober.share = share
        _search(prober, [n for n in chosen if n not in refused], refusals)
        if progress is not None:
            progress(done, len(rounds))
    if not isinstance(unwrap(model), SpikingViT):
        _check_elsewhere(model, graph, names, refusals)
    order = {group.name: i for i, group in enumerate(graph)}
    return sorted(refusals, key=lambda r: order[r.group])


def verify_cut(model: nn.Module, graph: ChannelGraph, cuts: KeptChannels) -> Failure | None:
    """Check one cut of several groups at its own widths, and return the first difference.

    A forward may take another path at widths that no trial cut of ``verify`` has.

    Example:
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> verify_cut(net, trace(net, torch.zeros(1, 4)), {"0": [1, 2]}) is None
        True
    """
    rows = {name: graph.kept(name, kept) for name, kept in cuts.items()}
    return _TracedCopy(model=model, graph=graph).try_rows(rows) if rows else None


def _check_elsewhere(
    model: nn.Module, graph: ChannelGraph, names: Sequence[str], refusals: list[Refusal]
) -> None:
    """Check cuts in training mode too, and with inputs of other sizes where sizes are rewritten.

    Where training computes with statistics over channels, such as firing rates of a batch, a cut
    changes them, and only shapes are compared there.
    """
    for other, example, modes in _conditions(model, graph):
        prober = _TracedCopy(model=other, graph=replace(graph, example=example), modes=modes)
        prober.share = 1 / 2
        refused = {r.group for r in refusals}
        left = [n for n in names if n not in refused]
        alike = {n for n in left if prober.traces_alike(graph[n])}
        if True in modes:
            prober.shapes_only = len(alike) < len(left)
        else:
            where = "with inputs of other sizes"
            refusals += [_unlike(n, prober, where) for n in left if n not in alike]
        _search(prober, [n for n in left if n in alike], refusals)


_Condition = tuple[nn.Module, tuple[Any, ...], tuple[bool, ...]]
_STEPS = frozenset(("T", "time_step", "time_steps", "timestep", "timesteps", "num_steps"))


def _conditions(model: nn.Module, graph: ChannelGraph) -> Iterator[_Condition]:
    """Yield other conditions that a network runs under: training mode, and inputs of other sizes.

    A larger batch, a higher resolution and one more time step come together where the network
    takes that, else one at a time; then every other axis, such as one of tokens.
    """
    if _runs(model, graph.example, training=True):
        yield model, graph.example, (False, True)
    if not graph.rewrites:
        return
    example = graph.example
    first = next((a for a in example if isinstance(a, Tensor) and a.ndim), None)
    if first is None:
        return
    pixels = [min(n, 32) if n > 64 else n for n in first.shape[-2:]] if first.ndim > 3 else []
    wider = [*[0] * (first.ndim - len(pixels)), *pixels]
    more = {"batch": [1, *[0] * (first.ndim - 1)], "resolution": wider}
    if first.ndim == 5:
        more["steps"] = [0, 1, 0, 0, 0]
    together = [sum(column) for column in zip(*more.values(), strict=True)]
    longer = _with_more_steps(model)
    changed = [False] * first.ndim
    for network in (longer, model) if longer is not None else (model,):
        if _runs(network, _padded(example, together)):
            yield network, _padded(example, together), (False,)
            more, longer, changed = {}, None, [n > 0 for n in together]
            break
    axes = [[int(d == axis) for d in range(first.ndim)] for axis in range(1, first.ndim)]
    for change in (*more.values(), *axes):
        new = any(n and not known for n, known in zip(change, changed, strict=True))
        if new and _runs(model, _padded(example, change)):
            yield model, _padded(example, change), (False,)
            changed = [n > 0 or known for n, known in zip(change, changed, strict=True)]
    if longer is not None and _runs(longer, example):
        yield longer, example, (False,)


def _padded(example: tuple[Any, ...], more: Sequence[int]) -> tuple[Any, ...]:
    """Example inputs with longer axes; all tensors that share the first one's shape are changed.

    Their values are smaller, as a factor may follow them too.
    """
    first = next(a for a in example if isinstance(a, Tensor) and a.ndim)

    def pad(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:1] != first.shape[:1]:
            return value
        for dim, extra in enumerate(more[: value.ndim] if value.shape == first.shape else more[:1]):
            if extra:
                index = torch.arange(value.shape[dim] + extra, device=value.device)
                value = value.index_select(dim, index % value.shape[dim])
        return value * 0.75 if value.is_floating_point() else value

    return tuple(pad(value) for value in example)


def _with_more_steps(model: nn.Module) -> nn.Module | None:
    """A copy whose modules count one more time step; ``None`` where none counts them by name."""
    longer = working_copy(model)
    held = [
        (vars(module), name)
        for module in longer.modules()
        for name, value in vars(module).items()
        if name in _STEPS and type(value) is int
    ]
    for own, name in held:
        own[name] += 1
    return longer if held else None


def _runs(model: nn.Module, example: tuple[Any, ...], *, training: bool = False) -> bool:
    """Whether the forward takes these inputs, in training mode if wanted."""
    duplicate = working_copy(model)
    train(duplicate, training)
    try:
        with torch.no_grad():
            duplicate(*example_args(duplicate, example))
    except Exception:  # whatever a forward raises about what it does not take
        return False
    return True


def _unlike(name: str, prober: _TracedCopy, where: str) -> Refusal:
    """The refusal of a group that a trace under other conditions does not find as it is."""
    own = next((g for g in prober.own if g.name == name), None)
    found = "other channels go together"
    why = own.reason if own is not None and own.reason else found
    return Refusal(
        group=name,
        module="",
        reason=f"{where}, where cuts are checked: {why}",
        fix="let the forward take the same path there",
    )


def _rounds(names: list[str]) -> Iterator[tuple[float, list[str]]]:
    """Rounds of trial cuts: the share of channels to remove, and the groups to cut at once.

    First a little of all groups; then halves, so that of any two groups one is cut without the
    other (two widths that a forward wrongly takes for one agree as long as both are cut alike);
    last, all groups down to two channels, and to one, which a forward may squeeze or broadcast.
    """
    yield 1 / 8, names
    for bit in range(max(0, len(names) - 1).bit_length()):
        yield 1 / 2, [n for i, n in enumerate(names) if i >> bit & 1]
    yield 1.0, names
    yield ONE_LEFT, names


def _search(prober: _TracedCopy, names: list[str], refusals: list[Refusal]) -> None:
    """Find the groups that fail, by halving a failing set of groups."""
    failure = prober.try_cut(names) if names else None
    if failure is None:
        return
    if len(names) == 1:
        refusals.append(
            Refusal(group=names[0], module=failure.module, reason=failure.reason, fix=failure.fix)
        )
        return
    middle = len(names) // 2
    before = len(refusals)
    _search(prober, names[:middle], refusals)
    _search(prober, names[middle:], refusals)
    if len(refusals) == before:  # only together: refuse them together rather than guess
        refusals.extend(
            Refusal(
                group=name,
                module=failure.module,
                reason=f"together with {len(names) - 1} other groups: {failure.reason}",
                fix=failure.fix,
            )
            for name in names
        )


ONE_LEFT = 2.0


def trial_cut(group: ChannelGroup, share: float) -> Ids:
    """A cut that removes a share of a group's channels, different ones at every position.

    Two are left at least, one with the share ``ONE_LEFT``.
    """
    gone = max(1, min(int(group.size * share), group.size - (1 if share == ONE_LEFT else 2)))
    rows = [
        sorted(set(range(group.size)) - {(p + i) % group.size for i in range(gone)})
        for p in range(group.positions)
    ]
    return np.asarray(rows, dtype=np.int64)


_Mode = Callable[[], AbstractContextManager[Any]]


@dataclass(kw_only=True)
class _TracedCopy:
    """A traced double-precision copy of a model, for runs with silenced and with cut channels."""

    model: nn.Module
    graph: ChannelGraph
    copy: nn.Module = field(init=False)
    args: tuple[Any, ...] = field(init=False)
    share: float = 1 / 8
    modes: tuple[bool, ...] = (False,)  # whether it trains, in each of its forwards
    shapes_only: bool = False
    _layouts: dict[Axis, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.copy = working_copy(self.model, double=True)
        take_widths_from_weights(self.copy)
        self.args = example_args(self.copy, self.graph.example, double=True)
        shorten(self.copy)
        self.args = tuple(_varied(a) for a in self.args)
        with InDoublePrecision() as plain:
            self._check_repeatable()
        own: _Mode = InDoublePrecision if plain.widened else DoubleByDefault
        self.mode: _Mode = own
        _soften_neurons(self.copy)
        if not isinstance(self.copy, SpikingViT):
            self.mode = partial(InDoublePrecision, lively=True, limit=plain.calls)
            with contextlib.suppress(Exception):  # a forward may check its values
                self._trace()
                if all(self.traces_alike(group) for group in self.graph.prunable()):
                    return
            self.mode = own
        self._trace()

    def traces_alike(self, group: ChannelGroup) -> bool:
        """Whether tracing the copy found this channel group with the same members."""
        own = next((g for g in self.own if g.name == group.name), None)
        return own is not None and own.status == "free" and self._facts(own) == self._facts(group)

    def _facts(self, group: ChannelGroup) -> tuple[Any, ...]:
        """Width, heads and members of a group, without members that only training reads."""
        used = self.record.used
        members = {(m.tensor, m.axis) for m in group.members if m.tensor in used}
        return group.size, group.fronts, members

    def _trace(self) -> None:
        with drawing_alike(self.copy, always=True in self.modes):
            sizes = bool(self.graph.rewrites)
            self.record = run(
                self.copy, self.args, mode=self.mode(), sizes=sizes, training=True in self.modes
            )
        self.builder = Builder(model=self.copy, record=self.record)
        own = self.builder.graph(self.args)
        rewrites = carried_over(
            self.graph.rewrites, own.rewrites, self._symbols(own), self.graph.sizes
        )
        self.own = replace(own, rewrites=rewrites)
        self.results = [
            [[self.layout(axis) for axis in axes] for axes in call] for call in self.record.results
        ]
        self.reads = [
            (r.call, r.operand, r.dim, self.layout(r.axes[r.dim]))
            for r in self.record.reads
            if r.live
        ]
        self.operands: dict[int, dict[int, list[Layout]]] = {}
        for r in self.record.reads:
            layouts = [self.layout(axis) for axis in r.axes]
            self.operands.setdefault(r.call, {})[r.operand] = layouts
        self.sizes = {n: s.size for s, n in self.builder.numbers.items()}

    def _symbols(self, own: ChannelGraph) -> dict[int, int]:
        """The symbols of this trace by those of the graph that is checked."""
        pairs = [
            (one, other)
            for name, info in self.graph.tensors.items()
            if name in own.tensors
            for one, other in zip(info.axes, own.tensors[name].axes, strict=True)
        ]
        found: dict[int, int] = {}
        for one, other in pairs:  # grows as parts are met
            mine, theirs = one.parts or (one,), other.parts or (other,)
            if _of_sizes(mine, self.graph.sizes) != _of_sizes(theirs, own.sizes):
                mine, theirs = _large(mine, self.graph.sizes), _large(theirs, own.sizes)
            for part, its in zip(mine, theirs, strict=False) if len(mine) == len(theirs) else ():
                if part.kind == its.kind == "symbol":
                    found.setdefault(part.symbol, its.symbol)
                elif part.parts and its.parts:
                    pairs.append((part, its))
        return found

    def _check_repeatable(self) -> None:
        """Two forwards have to agree, or nothing can be told from comparing them."""
        try:
            behaviour = settle(self.copy, self.args)
        except ValueError as error:
            if isinstance(error.__cause__, Exception):
                line = (str(error.__cause__).splitlines() or [""])[0]
                raise ValueError(
                    f"cuts are checked in double precision, and the forward of "
                    f"{type(self.model).__name__} fails there ({type(error.__cause__).__name__}: "
                    f"{line}); let it take the dtype of its input, or leave the check out with "
                    "verify=False"
                ) from error
            raise
        if not behaviour.repeatable:
            raise ValueError(unrepeatable(self.copy))

    def layout(self, axis: Axis) -> Layout:
        if axis not in self._layouts:
            self._layouts[axis] = self.builder.layout(axis)
        return self._layouts[axis]

    def try_cut(self, names: list[str]) -> Failure | None:
        return self.try_rows({name: trial_cut(self.own[name], self.share) for name in names})

    def try_rows(self, cuts: Mapping[str, Ids]) -> Failure | None:
        """Compare a cut of channels with silencing them where they are read."""
        kept = {self.own[n].symbol: (self.own[n], rows) for n, rows in cuts.items()}
        silenced = Silenced(traced=self, kept=kept)
        expected = self._forward(self.copy, silenced, silenced.stack)
        pruned = working_copy(self.copy)
        remove_channels(pruned, self.own, cuts)
        compared = Compared(
            expected=silenced.prints, drawn=silenced.drawn, shapes_only=self.shapes_only
        )
        try:
            found = self._forward(pruned, compared, compared.stack)
        except Exception as error:  # whatever a foreign forward raises is the finding
            line = (str(error).splitlines() or [""])[0]
            reason = f"the forward fails after a cut ({type(error).__name__}: {line})"
            return Failure(module=compared.where(), reason=reason, fix=CRASH)
        failure = compared.finish()
        one_left = any(rows.shape[1] == 1 for rows in cuts.values())
        if one_left and failure is not None and agree(expected, found):
            return None  # with an axis of size 1, einsum and others take another path
        return failure

    def _forward(self, model: nn.Module, mode: TorchDispatchMode, stack: list[str]) -> list[Tensor]:
        """The results of a forward of the copy, or of one made from it."""
        found: list[Tensor] = []
        with torch.no_grad(), drawing_alike(model, always=True in self.modes):
            for trains in self.modes:
                reset(model)
                train(model, trains)
                with module_stack(model, stack, None), mode, self.mode():
                    found += tensors_in(model(*self.args))
        train(model, False)
        reset(model)
        return found


def _of_sizes(parts: Sequence[Layout], sizes: Mapping[int, int]) -> list[int]:
    return [part.length(sizes) for part in parts]


def _large(parts: Sequence[Layout], sizes: Mapping[int, int]) -> tuple[Layout, ...]:
    """The parts of a layout without factors of size 1, which views add and drop."""
    return tuple(part for part in parts if part.length(sizes) > 1)


def _varied(value: Any) -> Any:
    """An example input, replaced by seeded noise where it is constant and so would show nothing."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.is_meta:
        return value
    if value.numel() and value.min() < value.max():
        return value
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)


def _soften_neurons(model: nn.Module) -> None:
    """Replace the output of every neuron by a sigmoid of its input.

    Silent neurons would hide a wrong constant (0 * scale is 0), and thresholds would hide small
    ones. A neuron acts on each channel alone, so what a cut means to the rest does not change.
    """

    def soft(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        given = args[0] if args else None
        if isinstance(given, torch.Tensor) and getattr(out, "shape", None) == given.shape:
            return given.sigmoid()
        return out

    for module in neurons(model):
        module.register_forward_hook(soft)


class DoubleByDefault(AbstractContextManager[None]):
    """Makes new tensors double, which is all that a network without other dtypes needs."""

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self._before)


class InDoublePrecision(TorchDispatchMode):
    """Runs a forward in double precision; with ``lively``, neurons that never fire vary too.

    Rounding would hide small differences, and layers cannot read what has another dtype than they.
    Neurons that people write are comparisons, steps and rectifiers: where none fires, or none is
    above zero, a wrong constant behind them would not show. They are replaced by functions of one
    element as well, which are zero where the input is.
    """

    def __init__(self, *, lively: bool = False, limit: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lively, self.limit = lively, limit
        self.calls = 0
        self.widened = False  # whether any operator was given or asked for another dtype
        self._before = torch.get_default_dtype()

    def __enter__(self) -> Self:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        entered: Self = super().__enter__()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(self, *found: Any) -> None:
        torch.set_default_dtype(self._before)
        super().__exit__(*found)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        if self.limit is not None and self.calls > self.limit:
            raise RuntimeError("a loop of the forward does not end")
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        lively = _LIVELY.get(name.rstrip("_")) if self.lively else None
        if lively is None and not any(map(_narrow, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        self.widened = True
        written = use_of(func).written
        names = [argument.name for argument in func._schema.arguments[: len(args)]]
        given = bind(func, args, kwargs)
        wanted = {n: v if n in written else _double(v) for n, v in given.items()}
        if isinstance(dtype := wanted.get("dtype"), torch.dtype):
            wanted["dtype"] = _WIDER.get(dtype, dtype)
        if lively is not None and _floating(wanted):
            result = lively(*wanted.values())
            return wanted["self"].copy_(result) if name.endswith("_") else result
        return func(*[wanted.pop(n) for n in names], **wanted)


_WIDER = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


def _narrow(value: Any) -> bool:
    """Whether an argument is, holds or asks for a dtype that is not checked in."""
    if isinstance(value, Tensor):
        return value.dtype in _WIDER
    if isinstance(value, list | tuple):
        return any(map(_narrow, value))
    return isinstance(value, torch.dtype) and value in _WIDER


def _double(value: Any) -> Any:
    """Tensors in double precision; those that no module holds may have another dtype."""
    if isinstance(value, Tensor):
        wider = _WIDER.get(value.dtype)
        return value if wider is None else torch.ops.aten._to_copy(value, dtype=wider)
    return [_double(part) for part in value] if isinstance(value, list | tuple) else value


def _floating(arguments: dict[str, Any]) -> bool:
    first = arguments.get("self")
    return isinstance(first, Tensor) and first.dtype == torch.float64


def _fires(x: Tensor, threshold: Any = 0.0, *_: Any) -> Tensor:
    """A comparison that comes out either way for about half of all values, never at zero."""
    made: Tensor = ((x - threshold) * 7).sin() * x > 0
    return made


def _clamped(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """A clamp within the same bounds that leaves no range of values all alike."""
    if low is None:
        return torch.clamp(x, low, high) - x.abs() / 8
    if high is None:
        return torch.clamp(x, low, high) + x.abs() / 8
    rest = torch.clamp(torch.zeros_like(x), low, high)
    made: Tensor = (torch.clamp(x, low, high) * 7 + rest + (high - rest) * x.abs().tanh()) / 8
    return made


_LIVELY: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("gt", "ge", "lt", "le"), _fires),
    **dict.fromkeys(("round", "floor", "ceil", "trunc"), lambda x, **_: x.clone()),
    **dict.fromkeys(("sign", "sgn"), lambda x: x / (x.abs() + 1)),
    **dict.fromkeys(("clamp", "hardtanh"), _clamped),
    "relu": lambda x: _clamped(x, 0.0),
    "clamp_min": _clamped,
    "clamp_max": lambda x, high: _clamped(x, None, high),
    "heaviside": lambda x, _: torch.where(_fires(x), 1.0, 0.0),
}

"""``trace``: discover the channel groups of a model from one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from primesvt.channels.adapter import can_be_adapted, installed, observed
from primesvt.channels.graph import (
    ChannelGraph,
    ChannelGroup,
    Kind,
    Member,
    Role,
    Status,
    TensorInfo,
    first_rows,
)
from primesvt.channels.layout import Layout
from primesvt.channels.naming import group_names
from primesvt.channels.rewriting import Lengths, Rewrite, candidates, held
from primesvt.channels.surgery import remove_channels
from primesvt.channels.symbols import Axis, Freeze, Symbol, flatten, freeze, size_of
from primesvt.channels.tracer import Record, run, train
from primesvt.models.forward import (
    check_can_be_cut,
    example_args,
    owner_of,
    shorten,
    state_tensors,
    unwrap,
    working_copy,
)
from primesvt.models.multihead import MultiheadAttention, take_widths_from_weights
from primesvt.models.neurons import neurons
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import drawing_alike, held_tensors, reset, settle


def trace(model: nn.Module, example_input: Any) -> ChannelGraph:
    """Discover the channel groups of any module from one forward pass on a CPU copy.

    Args:
        model: any ``nn.Module``; wrappers (DDP, ``torch.compile``) are looked through. It is not
            changed, and no neuron state is left behind.
        example_input: a small input tensor, or a tuple of positional arguments.

    Returns:
        The graph of every group that some convolution or linear layer produces.

    Raises:
        ValueError: lazy modules, whose widths are not known yet; TorchScript, quantized or sparse
            weights, which cannot be cut.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
        >>> print(trace(net, torch.randn(1, 1, 5, 5)))
        0: 8 channels, made by 0, read by 2
        2: 2 channels, made by 2, read by nothing; protected: reaches the model's output
    """
    inner = unwrap(model)
    check_can_be_cut(inner)
    for name, tensor in state_tensors(inner).items():
        if is_lazy(tensor):
            raise ValueError(f"'{name}' is lazy (no shape yet): run one forward before tracing")
    duplicate = working_copy(inner)
    take_widths_from_weights(duplicate)
    args = example_args(duplicate, example_input)
    shorten(duplicate)
    settle(duplicate, args)
    foreign = not isinstance(inner, SpikingViT)
    with drawing_alike(duplicate):
        record = run(duplicate, args, sizes=foreign)
        graph = Builder(model=duplicate, record=record).graph(example_input)
        graph = _with_needed_rewrites(duplicate, args, graph)
        if foreign:
            return _with_training(duplicate, args, graph)
    return graph


def _with_needed_rewrites(
    model: nn.Module, args: tuple[Any, ...], graph: ChannelGraph, *, training: bool = False
) -> ChannelGraph:
    """The graph with those rewrites only without which a forward computes wrong sizes.

    Trial cuts show them: of any two groups one is cut without the other. ``training`` says whether
    the trace holds a forward that trains, too.
    """
    if not graph.rewrites:
        return graph
    free = [g for g in graph.groups if g.status == "free" and g.kind != "heads" and g.size > 1]
    bits = range(max(1, len(free).bit_length()))
    known = [r for r in graph.rewrites if r.kind == "attribute" or r.held]
    needed = {*known, *(r for r in graph.rewrites if installed(model, r))}
    for bit in bits:
        pruned = working_copy(model)
        chosen = [g for i, g in enumerate(free, start=1) if i >> bit & 1]
        cuts = {g.name: first_rows(g, max(1, g.size // 3)) for g in chosen}
        remove_channels(pruned, graph, cuts)
        with observed() as found, torch.no_grad():
            for trains in (False, True) if training else (False,):
                reset(pruned)
                train(pruned, trains)
                with contextlib.suppress(Exception):  # what it does not reach counts as needed
                    pruned(*args)
        needed.update(r for r in graph.rewrites if found.needs(r))
    return replace(graph, rewrites=tuple(r for r in graph.rewrites if r in needed))


def _with_training(model: nn.Module, args: tuple[Any, ...], graph: ChannelGraph) -> ChannelGraph:
    """The graph in which weights that only a training forward reads are cut along.

    It knows the sizes that only a training forward writes, too. Where the training forward fails,
    or would forbid cuts that the other allows, both are left.
    """
    try:
        record = run(model, args, training=True, sizes=True)
    except Exception:  # it may want labels, or gradients
        return graph
    both = Builder(model=model, record=record).graph(graph.example)
    free = {(g.name, g.size, g.fronts) for g in graph.groups if g.prunable}
    kept = {(g.name, g.size, g.fronts) for g in both.groups if g.prunable}
    more = len(both.unread) < len(graph.unread) or both.seen > graph.seen
    if not (free <= kept and more):
        return graph
    return _with_needed_rewrites(model, args, both, training=True)


@dataclass(kw_only=True)
class _Class:
    """One equivalence class of tensor axes after the trace: its symbol and its members."""

    symbol: Symbol
    members: dict[tuple[str, int], list[tuple[int, ...]]] = field(default_factory=dict)
    leads: bool = False  # stands in front of another symbol on a produced axis
    tangled: bool = False  # occurs twice in one product


@dataclass(kw_only=True)
class Builder:
    """Builds the channel graph from the symbols of a trace."""

    model: nn.Module
    record: Record
    numbers: dict[Symbol, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def graph(self, example_input: Any) -> ChannelGraph:
        self._freeze_parametrized()
        tensors = self._tensors()
        classes = self._classes(tensors)
        read = {leaf for r in self.record.reads for leaf in self._leaf_numbers(r.axes[r.dim])}
        drafts = [
            self._group(number, entry, number in read)
            for number, entry in classes.items()
            if any(member in self.record.links["producer"] for member in entry.members)
        ]
        drafts = [g for g in drafts if g.kind != "heads" or (g.status == "free" and g.size > 1)]
        order = {tensor: i for i, (tensor, _) in enumerate(self.record.links["producer"])}
        drafts.sort(key=lambda g: (order[g.producers[0].tensor], g.kind == "heads"))
        module_symbols = {
            name: frozenset(
                n for axes in outputs for axis in axes for n in self._leaf_numbers(axis)
            )
            for name, outputs in self.record.outputs.items()
        }
        names = group_names(drafts, module_symbols, self._chains())
        groups = tuple(replace(g, name=n) for g, n in zip(drafts, names, strict=True))
        originals = {group.name: first_rows(group, group.size) for group in groups}
        example = example_input if isinstance(example_input, tuple) else (example_input,)
        free = {g.symbol for g in groups if g.status == "free" and g.kind != "heads"}
        fixed = {n for info in tensors.values() for a in info.axes for n in a.symbols()}
        lengths = Lengths(layout=self.layout, fixed=fixed, channels=free, sizes=self.sizes)
        rewrites = (
            *self._scales(free),
            *(
                r
                for r in candidates(self.record.noted, self.record.mixed, lengths)
                if r.kind == "attribute" or can_be_adapted(self.model.get_submodule(r.place.module))
            ),
        )
        return ChannelGraph(
            groups=groups,
            tensors=tensors,
            sizes=dict(self.sizes),
            originals=originals,
            notes=tuple(dict.fromkeys([*map(str, self.record.freezes), *self._alone(groups)])),
            example=example,
            unread=tuple(
                name
                for name, parameter in self.model.named_parameters()
                if parameter.ndim and name not in self.record.used
            ),
            rewrites=rewrites,
            seen=frozenset(written.place for written in self.record.noted),
        )

    def _alone(self, groups: tuple[ChannelGroup, ...]) -> Iterator[str]:
        """Yield a note for each parameter that the forward reads, but no channel group holds."""
        held = {member.tensor for group in groups for member in group.members}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in self.record.used and name not in held and parameter.numel() > 1:
                reader = self.record.used[name]
                yield f"'{name}' is in no channel group: no layer makes its axes (read by {reader})"

    def _scales(self, free: Set[int]) -> Iterator[Rewrite]:
        """Scales that attentions hold, and that PyTorch takes from a width that may be cut."""
        for path, module in self.model.named_modules():
            if isinstance(module, MultiheadAttention):
                name = "in_proj_weight" if module.in_proj_weight is not None else "q_proj_weight"
                axis = self.record.tensors[f"{path}.{name}" if path else name][0]
                queries = self.layout(axis)
                queries = queries.parts[0] if queries.kind == "concat" else queries
                if queries.symbols() & free:
                    yield held(path, "scale of MultiheadAttention", module.scale)

    # --- layouts --------------------------------------------------------------------------

    def number(self, symbol: Symbol) -> int:
        root = symbol.find()
        number = self.numbers.setdefault(root, len(self.numbers))
        self.sizes[number] = root.size
        return number

    def layout(self, axis: Axis) -> Layout:
        """The layout of an axis, without unconfirmed factors of size 1 (a single one stays)."""
        symbols = flatten(axis)
        solid = [s for s in symbols if not (s.ghost and s.size == 1)] or list(symbols[:1])
        parts = tuple(
            Layout(kind="concat", parts=tuple(self.layout((p,)) for p in s.parts))
            if s.parts
            else Layout(kind="symbol", symbol=self.number(s))
            for s in solid
        )
        return parts[0] if len(parts) == 1 else Layout(kind="product", parts=parts)

    def _tensors(self) -> dict[str, TensorInfo]:
        state = {**state_tensors(self.model), **held_tensors(self.model)}
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        return {
            name: TensorInfo(
                axes=tuple(self.layout(axis) for axis in axes),
                item_bytes=state[name].element_size(),
                is_parameter=isinstance(state[name], nn.Parameter),
                counted=first[id(state[name])] == name and name not in self.record.held,
                groups=self.layout(self.record.groups[name])
                if name in self.record.groups
                else None,
            )
            for name, axes in self.record.tensors.items()
        }

    def _leaf_numbers(self, axis: Axis) -> frozenset[int]:
        return self.layout(axis).symbols()

    def _chains(self) -> frozenset[str]:
        """Modules with several weights and no neuron: RepConv, for one."""
        makers = {owner_of(tensor) for tensor, _ in self.record.links["producer"]}
        return frozenset(
            path
            for path, module in self.model.named_modules()
            if sum(m.startswith(f"{path}.") for m in makers) > 1
            and not any(callable(getattr(m, "reset", None)) for m in module.modules())
            and next(neurons(module), None) is None
        )

    # --- classes and groups ---------------------------------------------------------------

    def _classes(self, tensors: dict[str, TensorInfo]) -> dict[int, _Class]:
        symbols = {n: s for s, n in self.numbers.items()}
        classes: dict[int, _Class] = {}
        for name, info in tensors.items():
            for dim, layout in enumerate(info.axes):
                for number, fronts in layout.paths():
                    entry = classes.setdefault(number, _Class(symbol=symbols[number]))
                    fronts = fronts or self._block_fronts(info, dim)
                    entry.members.setdefault((name, dim), []).append(fronts)
                for number in layout.tangled():
                    classes[number].tangled = True
        numbered = {n for s, n in self.numbers.items() if s.numbered}
        for name, dim in self.record.links["producer"]:
            for number in tensors[name].axes[dim].leading(numbered):
                classes[number].leads = True
        return classes

    def _block_fronts(self, info: TensorInfo, dim: int) -> tuple[int, ...]:
        """Numbers of the axes that count the groups of a convolution; empty for other axes than 1.

        Axis 1 of a grouped weight holds the inputs of one group: the groups stand in front of it.
        """
        if info.groups is None or dim != 1 or len(info.axes) < 2:
            return ()
        if info.groups.symbols() == info.axes[0].symbols():  # depthwise
            return ()
        return tuple(n for n, _ in info.groups.paths())

    def _group(self, number: int, entry: _Class, summed_away: bool) -> ChannelGroup:
        members = tuple(self._member(name, dim) for name, dim in entry.members)
        fronts = () if entry.leads else self._free_fronts(number, entry)
        order = {key: i for i, key in enumerate(self.record.links["producer"])}
        members = tuple(sorted(members, key=lambda m: order.get((m.tensor, m.axis), len(order))))
        kind: Kind = "heads" if entry.leads else "stream" if entry.symbol.summed else "channel"
        status, reason = self._status(entry, members, summed_away)
        return ChannelGroup(
            name="",
            kind=kind,
            size=entry.symbol.size,
            fronts=tuple(s.size for n in fronts for s in [self._symbol(n)]),
            members=members,
            status=status,
            reason=reason,
            symbol=number,
            front_symbols=fronts,
        )

    def _symbol(self, number: int) -> Symbol:
        return list(self.numbers)[number]

    def _free_fronts(self, number: int, entry: _Class) -> tuple[int, ...]:
        """Symbols in front of the group in every member, along which choices may differ."""
        paths = [fronts for found in entry.members.values() for fronts in found]
        common = [f for f in paths[0] if all(f in fronts for fronts in paths[1:])]
        return tuple(
            f
            for f in common
            if not self._symbol(f).pinned
            and self._symbol(f).size > 1
            and (f, number) not in self._mixed
        )

    @cached_property
    def _mixed(self) -> frozenset[tuple[int, int]]:
        """Pairs (front, symbol) where the front is summed over in a tensor with the symbol."""
        found: set[tuple[int, int]] = set()
        for read in self.record.reads:
            dropped = self._leaf_numbers(read.axes[read.dim])
            others = (a for d, a in enumerate(read.axes) if d != read.dim)
            rest = {n for axis in others for n in self._leaf_numbers(axis)}.difference(dropped)
            found.update((front, symbol) for front in dropped for symbol in rest)
        return frozenset(found)

    def _member(self, tensor: str, axis: int) -> Member:
        role: Role = "follower"
        if (tensor, axis) in self.record.links["producer"]:
            role = "producer"
        elif (tensor, axis) in self.record.links["reader"]:
            role = "reader"
        return Member(tensor=tensor, axis=axis, role=role, module=owner_of(tensor))

    def _status(
        self, entry: _Class, members: tuple[Member, ...], summed_away: bool
    ) -> tuple[Status, str]:
        symbol = entry.symbol
        if symbol.freeze is not None:
            return "frozen", str(symbol.freeze)
        if symbol.protected:
            return "protected", symbol.protected
        if entry.tangled:
            return "frozen", "the channels stand more than once on one axis"
        if not summed_away and not any(m.role == "reader" for m in members):
            return "frozen", "nothing in the forward reads them"
        return "free", ""

    def _freeze_parametrized(self) -> None:
        """Freeze layers of whose weight a parametrization mixes all entries, and recurrent ones.

        Those keep their weights in a list beside.
        """
        for path, module in self.model.named_modules():
            if not is_parametrized(module):
                continue
            start = f"{path}." if path else ""
            own = {n: axes for n, axes in self.record.tensors.items() if n.startswith(start)}
            why = self._mixed_by(f"{start}parametrizations.", own)
            if isinstance(module, nn.RNNBase):
                reason = "a recurrent layer is parametrized"
                why = Freeze(operator="parametrization", module=path, reason=reason)
            if why is not None:
                freeze((s for axes in own.values() for axis in axes for s in axis), why)

    def _mixed_by(self, start: str, tensors: Mapping[str, list[Axis]]) -> Freeze | None:
        """Why a parametrization leaves no axis free of a tensor that it is given."""
        for name, axes in tensors.items():
            leaf = name.rpartition(".")[2]
            if not (name.startswith(start) and leaf.startswith("original")):
                continue
            found = [
                next((s.find().freeze for s in flatten(axis)), None)
                for axis in axes
                if size_of(axis) > 1
            ]
            inside = [f for f in found if f is not None and f.module.startswith(start)]
            if inside and len(inside) == len(found):
                return inside[0]
        return None

"""The channel graph: which tensor axes belong together, as frozen data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from primesvt.channels.layout import Layout, coordinates
from primesvt.channels.rewriting import Rewrite
from primesvt.channels.written_sizes import Place

Ids = npt.NDArray[np.int64]
Kind = Literal["channel", "stream", "heads"]
Role = Literal["producer", "reader", "follower"]
Status = Literal["free", "frozen", "protected"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One axis of one parameter or buffer that carries the channels of a group."""

    tensor: str
    axis: int
    role: Role
    module: str

    def __str__(self) -> str:
        return f"{self.tensor}[{self.axis}]"


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that must be removed together.

    Attributes:
        name: first producing module in forward order, plus a role where one is needed.
        kind: ``channel`` (prunable), ``stream`` (on request: the shortcut of a block of several
            layers; what one layer adds to its own input is a channel), ``heads`` (only listed).
        size: channels at each front position, as the model is now.
        fronts: sizes of the symbols in front (heads) along which kept channels may differ.
        members: every parameter or buffer axis that carries the channels.
        status: ``free``, ``frozen`` (no exact removal) or ``protected`` (reaches input or output).
        reason: why it is not free.
    """

    name: str
    kind: Kind
    size: int
    fronts: tuple[int, ...]
    members: tuple[Member, ...]
    status: Status
    reason: str
    symbol: int
    front_symbols: tuple[int, ...]

    @property
    def positions(self) -> int:
        return prod(self.fronts)

    @property
    def prunable(self) -> bool:
        return self.status == "free" and self.kind == "channel"

    @property
    def producers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == "producer")

    @property
    def readers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == "reader")

    @property
    def followers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == "follower")

    def __str__(self) -> str:
        noun = {"channel": "channels", "stream": "stream channels", "heads": "heads"}[self.kind]
        width = " x ".join(map(str, (*self.fronts, self.size)))
        made = _and(m.module for m in self.producers)
        inside = "nothing" if self.status == "protected" else "a product or sum inside the forward"
        read = _and(m.module for m in self.readers) or inside
        text = f"{self.name}: {width} {noun}, made by {made}, read by {read}"
        if self.status == "frozen":
            return f"{text}; frozen: {self.reason}"
        if self.status == "protected":
            return f"{text}; protected: reaches the model's {self.reason}"
        return text


def first_rows(group: ChannelGroup, count: int) -> Ids:
    """Indices of the first ``count`` channels at every position of a group, ``[positions, count]``.

    Cuts by them are exact where only the number of channels matters.
    """
    return np.tile(np.arange(count, dtype=np.int64), (group.positions, 1))


def kept_mask(group: ChannelGroup, kept: Ids) -> npt.NDArray[np.bool_]:
    """Mask ``[positions, size]`` of the channels of a group that stay, from their indices."""
    mask = np.zeros((group.positions, group.size), dtype=bool)
    np.put_along_axis(mask, kept, True, axis=1)
    return mask


def _and(names: Iterator[str] | Sequence[str], limit: int = 3) -> str:
    unique = list(dict.fromkeys(names))
    if len(unique) > limit:
        return f"{', '.join(unique[:limit])} and {len(unique) - limit} more"
    return " and ".join(unique)


@dataclass(frozen=True, kw_only=True)
class Freed:
    """Number of parameters, and bytes of parameters and buffers, that a set of cuts removes."""

    parameters: int
    parameter_bytes: int
    buffer_bytes: int


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A traced parameter or buffer: the layout of each axis, and the bytes of an entry."""

    axes: tuple[Layout, ...]
    item_bytes: int
    is_parameter: bool
    groups: Layout | None = None  # of a grouped convolution's weight
    counted: bool = True  # False for the second name of a shared tensor


KeptChannels = Mapping[str, npt.ArrayLike]


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """All channel groups of one model, and the layout of every tensor they touch.

    ``unread`` names the parameters that the traced forward never reads: they keep their shapes.
    ``rewrites`` are the numbers that a forward has to be given after a cut; ``seen`` are the calls
    with sizes that the traced forward reached.

    A graph belongs to the widths it was traced at: ``remove_channels`` raises on a model of others
    and returns the graph of the smaller model, whose ``original`` indices still count in the first.
    """

    groups: tuple[ChannelGroup, ...]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    sizes: Mapping[int, int] = field(repr=False)
    originals: Mapping[str, Ids] = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()
    example: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    unread: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = field(default=(), repr=False)
    seen: frozenset[Place] = field(default=frozenset(), repr=False)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        if name in self._by_name:
            return self._by_name[name]
        from difflib import get_close_matches

        near = get_close_matches(name, [g.name for g in self.groups], n=3, cutoff=0.3)
        raise ValueError(f"no channel group named '{name}'; nearest: {', '.join(near) or 'none'}")

    def __str__(self) -> str:
        return "\n".join(str(group) for group in self.groups)

    def prunable(self) -> tuple[ChannelGroup, ...]:
        """Free groups of kind ``channel``, in forward order."""
        return tuple(g for g in self.groups if g.prunable)

    def original(self, name: str) -> Ids:
        """Original channel index of every kept channel, ``[positions, size]``."""
        self[name]
        return self.originals[name].copy()

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(axis.length(self.sizes) for axis in info.axes)
            for name, info in self.tensors.items()
        }

    @cached_property
    def _tables(self) -> dict[tuple[str, int], dict[int, Ids]]:
        """Coordinates of axes, kept as surgery asks for the same ones again."""
        return {}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape the graph expects of a parameter or buffer."""
        return self._shapes[tensor]

    def ids(self, group: ChannelGroup, member: Member) -> Ids:
        """The group's channel at every index of a member's axis: ``position * size + channel``.

        It is -1 where the index belongs to no channel of the group.

        Where the front symbols do not stand on this axis (axis 1 of a grouped convolution), the
        channel alone is returned.
        """
        where = (member.tensor, member.axis)
        if where not in self._tables:
            axis = self.tensors[member.tensor].axes[member.axis]
            self._tables[where] = coordinates(axis, self.sizes)
        table = self._tables[where]
        channel = table[group.symbol]
        if any(front not in table for front in group.front_symbols):
            return channel
        position = np.zeros_like(channel)
        for front, size in zip(group.front_symbols, group.fronts, strict=True):
            position = position * size + table[front]
        return np.where(channel < 0, -1, position * group.size + channel)

    def kept(self, name: str, kept: npt.ArrayLike) -> Ids:
        """Validated kept indices as ``[positions, k]``, ascending.

        Raises:
            ValueError: wrong number of positions, ragged, repeated, out of range or empty.
        """
        group = self[name]
        try:
            array = np.asarray(kept)
        except ValueError:
            array = np.empty(0, dtype=object)
        if array.ndim == 1 and group.positions == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[0] != group.positions or array.shape[1] < 1:
            raise ValueError(
                f"group '{name}' wants kept channels as {group.positions} rows of equal length "
                f">= 1, got an array of shape {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"kept channels of group '{name}' must be integers, got {array.dtype}")
        array = np.sort(array.astype(np.int64), axis=1)
        if array.min() < 0 or array.max() >= group.size or (np.diff(array, axis=1) == 0).any():
            raise ValueError(
                f"kept channels of group '{name}' must be distinct and in 0..{group.size - 1}"
            )
        return array

    def to_original(self, name: str, kept: npt.ArrayLike) -> list[list[int]]:
        """Current kept indices as original ones, nested per front position (for plans)."""
        rows = np.take_along_axis(self.originals[name], self.kept(name, kept), axis=1)
        return [[int(i) for i in row] for row in rows]

    def after(self, cuts: KeptChannels) -> ChannelGraph:
        """The graph of the model after these cuts."""
        rows = {name: self.kept(name, kept) for name, kept in cuts.items()}
        sizes = {**self.sizes, **{self[n].symbol: r.shape[1] for n, r in rows.items()}}
        originals = {
            **self.originals,
            **{n: np.take_along_axis(self.originals[n], r, axis=1) for n, r in rows.items()},
        }
        groups = tuple(replace(g, size=sizes[g.symbol]) for g in self.groups)
        return replace(self, groups=groups, sizes=sizes, originals=originals)

    def freed(self, cuts: KeptChannels) -> Freed:
        """Parameters and bytes that ``remove_channels`` would remove with these cuts."""
        small = self.after(cuts)
        parameters = parameter_bytes = buffer_bytes = 0
        for name, info in self.tensors.items():
            if not info.counted:
                continue
            gone = prod(self.shape(name)) - prod(small.shape(name))
            if info.is_parameter:
                parameters += gone
                parameter_bytes += gone * info.item_bytes
            else:
                buffer_bytes += gone * info.item_bytes
        return Freed(
            parameters=parameters, parameter_bytes=parameter_bytes, buffer_bytes=buffer_bytes
        )

    def touched(self, groups: Iterable[ChannelGroup] | None = None) -> int:
        """Number of parameters in tensors that some group lies on; by default some prunable one."""
        symbols = {g.symbol for g in (self.prunable() if groups is None else groups)}
        return sum(
            prod(self.shape(name))
            for name, info in self.tensors.items()
            if info.is_parameter
            and info.counted
            and any(symbols & axis.symbols() for axis in info.axes)
        )

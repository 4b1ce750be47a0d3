"""One family, as the tests shared by all families see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup


@dataclass(frozen=True)
class Expected:
    """One row of a table of groups: who writes, who reads, who follows, and the sizes."""

    kind: str
    size: int
    fronts: tuple[int, ...]
    producers: frozenset[str]
    readers: frozenset[str]
    members: frozenset[tuple[str, int]]


def tensors(model: nn.Module, module: str, axis: int = 0) -> set[tuple[str, int]]:
    """Every parameter and buffer right inside a module, along an axis (scalars left out)."""
    owner = model.get_submodule(module)
    own = {**owner._parameters, **owner._buffers}
    return {(f"{module}.{n}", axis) for n, t in own.items() if t is not None and t.dim() > axis}


def row(
    model: nn.Module,
    kind: str,
    size: int,
    fronts: tuple[int, ...],
    *,
    producers: list[str],
    readers: list[str],
    followers: list[str],
) -> Expected:
    """A row from module paths: all tensors of producers and followers, axis 1 of the readers."""
    members: set[tuple[str, int]] = set()
    for module in (*producers, *followers):
        members |= tensors(model, module)
    members |= {(f"{module}.weight", 1) for module in readers}
    return Expected(
        kind, size, fronts, frozenset(producers), frozenset(readers), frozenset(members)
    )


def described(graph: ChannelGraph, group: ChannelGroup) -> Expected:
    """A traced group in the table's terms."""
    return Expected(
        group.kind,
        group.size,
        group.fronts,
        frozenset(m.module for m in group.producers),
        frozenset(m.module for m in group.readers),
        frozenset((m.tensor, m.axis) for m in group.members),
    )


def blind(model: nn.Module, reader: str, removed: list[int]) -> None:
    """Set the columns of a reading layer to zero."""
    with torch.no_grad():
        model.get_submodule(reader).weight[:, removed] = 0.0


def small_square(_config: Any) -> tuple[int, int]:
    return 8, 8


def any_small(_config: Any) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(5, 9), st.integers(5, 9))


def nothing_bound(_model: nn.Module, _config: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True, repr=False)
class FamilyCase:
    """What the shared tests need to know of a family, all of it written by hand.

    Attributes:
        family: its name in ``primesvt.models.families.FAMILIES``.
        goldens: for every golden file of the family, the overrides that ``primesvt.load`` needs
            because shapes cannot tell them.
        manifests: for every manifest of the family, the name of the registered model.
        configs: hypothesis strategy of small networks with odd widths (``depth=`` blocks a stage).
        table: every group that may be cut, by name, as SPEC's tables say.
        heads: how many groups of kind ``"heads"`` there are.
        frozen: groups beside the classes that may not be cut: name to a part of the reason.
        ignore: make every reader of a group blind to some channels (indices of the whole axis).
        entering: the group whose channels enter a neuron, and the axis they lie on; ``None`` where
            no single group does.
        size: height and width of a small input; ``frames`` gives event frames instead of images.
        sizes: strategy of other heights and widths, with at least 2 x 2 tokens.
        shares: least share of the parameters in reach without streams, per registered model.
        spoilers: small mistakes made in a finished model, by name; the comparison with every golden
            file must catch each (those that a model lacks the module for change nothing and raise
            ``LookupError``).
    """

    family: str
    goldens: Mapping[str, Mapping[str, Any]]
    manifests: Mapping[str, str]
    configs: Callable[..., st.SearchStrategy[Any]]
    table: Callable[[nn.Module, Any], dict[str, Expected]]
    heads: Callable[[Any], int]
    ignore: Callable[[nn.Module, str, list[int]], None]
    entering: Callable[[nn.Module, str], tuple[str, int] | None]
    frozen: Callable[[nn.Module, Any], dict[str, str]] = nothing_bound
    size: Callable[[Any], tuple[int, int]] = small_square
    sizes: Callable[[Any], st.SearchStrategy[tuple[int, int]]] = any_small
    frames: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    spoilers: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"the case of {self.family}"

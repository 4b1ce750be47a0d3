"""Names of channel groups: the first producing module in forward order, plus a role."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence, Set

from primesvt.channels.graph import ChannelGroup


def group_names(
    groups: Sequence[ChannelGroup],
    module_symbols: Mapping[str, frozenset[int]],
    chains: Set[str],
) -> list[str]:
    """One unique name per group: ``attn.q+k``, ``attn.v``, ``attn.q:inner``, ``attn:heads``.

    Args:
        groups: in forward order, unnamed.
        module_symbols: the symbols on each module's outputs.
        chains: modules that chain several weights without a neuron, and count as one layer.
    """
    names = [_name(g, _homes(g, module_symbols), chains) for g in groups]
    count = Counter(names)
    taken = {name for name in names if count[name] == 1}
    unique = []
    for name in names:
        if count[name] > 1:  # a number that makes the name of another group is left out
            name = next(n for i in itertools.count() if (n := f"{name}:{i}") not in taken)
            taken.add(name)
        unique.append(name)
    return unique


def _homes(group: ChannelGroup, module_symbols: Mapping[str, frozenset[int]]) -> list[str]:
    """For every producer: the outermost module that outputs the channels and holds no other one."""
    modules = list(dict.fromkeys(m.module for m in group.producers))
    return [_home(module, modules, group.symbol, module_symbols) for module in modules]


def _home(
    module: str, producers: list[str], symbol: int, module_symbols: Mapping[str, frozenset[int]]
) -> str:
    parts = module.split(".")
    for i in range(1, len(parts)):
        ancestor = ".".join(parts[:i])
        alone = sum(p.startswith(f"{ancestor}.") for p in producers) == 1
        if alone and symbol in module_symbols.get(ancestor, ()):
            return ancestor
    return module


def _name(group: ChannelGroup, homes: list[str], chains: Set[str]) -> str:
    if group.kind == "heads":
        return f"{_common(homes).rstrip('.') or homes[0]}:heads"
    if group.kind == "stream":
        return f"{homes[0]}:stream"
    if len(homes) == 1:
        parent, _, leaf = homes[0].rpartition(".")
        return f"{parent}:{leaf}" if parent in chains else homes[0]
    prefix = _common(homes)
    ends = [home[len(prefix) :].split(".")[0] for home in homes]
    return prefix + "+".join(dict.fromkeys(ends))


def _common(names: list[str]) -> str:
    """The shared dotted prefix, with its last dot."""
    shared = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared

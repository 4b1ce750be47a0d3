"""Which channel groups a run may cut, and why it may not cut the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial

from torch import nn

from primesvt.channels import ChannelGraph, ChannelGroup, Refusal, verification
from primesvt.config import Selection
from primesvt.evaluation.evaluator import Progress

__all__ = ["Candidates", "find_candidates"]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The groups to prune, in forward order, and those that the check on a copy refused."""

    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]


def find_candidates(
    model: nn.Module,
    graph: ChannelGraph,
    selection: Selection,
    *,
    verify: bool,
    progress: Progress | None = None,
) -> Candidates:
    """Find the channel groups to prune, by a selection; with ``verify`` only what cuts exactly.

    Raises:
        ValueError: a glob that matches no group (naming the nearest), or nothing left to prune.

    Example:
        >>> import torch
        >>> from primesvt.channels import trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> graph = trace(net, torch.zeros(1, 4))
        >>> first = Selection(include=["0"])
        >>> [group.name for group in find_candidates(net, graph, first, verify=True).groups]
        ['0']
    """
    everything = {group.name for group in graph}
    included = _matched(graph, selection.include) if selection.include else everything
    chosen = included - _matched(graph, selection.exclude)
    kinds = {"channel", "stream"} if selection.include_streams else {"channel"}
    groups = [
        group
        for group in graph
        if group.name in chosen and group.status == "free" and group.kind in kinds
    ]
    if not groups:
        raise ValueError(_nothing(graph, chosen))
    refusals: tuple[Refusal, ...] = ()
    if verify:
        tell = None if progress is None else partial(progress, "checking cuts")
        names = [group.name for group in groups]
        refusals = tuple(verification.verify(model, graph, names, progress=tell))
    refused = {refusal.group for refusal in refusals}
    left = tuple(group for group in groups if group.name not in refused)
    if not left:
        raise ValueError(f"no group can be cut exactly: {refusals[0]}")
    return Candidates(groups=left, refusals=refusals)


def _matched(graph: ChannelGraph, globs: Sequence[str]) -> set[str]:
    """Names of groups that match any of the globs; each glob must match one."""
    names = [group.name for group in graph]
    found: set[str] = set()
    for glob in globs:
        matched = {name for name in names if fnmatchcase(name, glob)}
        if not matched:
            near = get_close_matches(glob.strip("*"), names, n=3, cutoff=0.2) or names[:3]
            raise ValueError(
                f"no channel group matches {glob!r}; nearest: {', '.join(near)} "
                "(`primesvt inspect MODEL --groups` lists them all)"
            )
        found |= matched
    return found


def _nothing(graph: ChannelGraph, chosen: set[str]) -> str:
    """Why no chosen group can be pruned, with the first of them as an example."""
    if not chosen:
        return "include and exclude leave no channel group to prune; exclude fewer"
    group = next(group for group in graph if group.name in chosen)
    reason = {
        "free": f"it holds {'whole heads' if group.kind == 'heads' else 'a residual stream'}",
        "frozen": group.reason,
        "protected": f"it reaches the model's {group.reason}",
    }[group.status]
    return f"none of the {len(chosen)} chosen groups can be pruned; {group.name}, for one: {reason}"

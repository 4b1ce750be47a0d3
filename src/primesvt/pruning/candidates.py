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
    """The groups to prune, in forward order, and those that the check on a copy refused.

    Attributes:
        groups: to prune.
        refusals: of groups whose removal would not be exact.
        blocked: share of the parameters that only groups without an exact removal lie on.
        why: of the largest of those groups, in words.
    """

    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]
    blocked: float = 0.0
    why: str = ""

    def note(self) -> str:
        """A sentence on the parameters that could not be cut; empty where there are none."""
        if self.blocked < 0.005:
            return ""
        return (
            f"{self.blocked:.0%} of the parameters are in groups that could not be cut, above all "
            f"because {self.why}."
        )


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
    return _with_blocked(graph, left, refusals)


def _with_blocked(
    graph: ChannelGraph, left: tuple[ChannelGroup, ...], refusals: tuple[Refusal, ...]
) -> Candidates:
    """Candidates that know how many parameters no exact removal reaches, and the main reason."""
    reasons = {r.group: str(r) for r in refusals}
    frozen = [g for g in graph if g.status == "frozen" and g.kind != "heads"]
    reasons |= {g.name: f"{g.name}: {g.reason}" for g in frozen}
    stuck = [graph[name] for name in reasons]
    total = graph.touched(graph.groups)
    beyond = graph.touched([*stuck, *left]) - graph.touched(left)
    worst = max(stuck, key=lambda group: graph.touched([group]), default=None)
    return Candidates(
        groups=left,
        refusals=refusals,
        blocked=beyond / total if total else 0.0,
        why=reasons[worst.name] if worst is not None else "",
    )


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

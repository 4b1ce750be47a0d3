"""What a policy took: its cuts in order, and the whole network after them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from primesvt.pruning.gate import Verdict
from primesvt.pruning.probe_table import Probe
from primesvt.pruning.sensitivity import Layer, Point

__all__ = ["Choice", "Target", "Walk", "cuts_of"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer as the selection of target layers saw it.

    Attributes:
        layer: the probed layer.
        tolerated: the points within the accuracy limit, ascending rates.
        best: the tolerated point of the highest benefit score, ``None`` without any.
        benefit: that score, accuracy x memory saving.
        chosen: the layer is a target.
        reason: why not, where it is not.
    """

    layer: Layer
    tolerated: tuple[Point, ...]
    best: Point | None
    benefit: float
    chosen: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One cut: the group, its front positions and channels before, and what it keeps of them.

    ``probe`` and ``verdict`` are those of the whole network after this cut and all before it, where
    that network was measured.
    """

    group: str
    positions: int
    size: int
    rate: float
    kept: int
    probe: Probe | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a policy took.

    Attributes:
        choices: cuts in the order taken.
        refused: measured networks that the gate turned down.
        accuracy_bound: some group got less than its highest rate because of the gate.
        stopped: the policy ended early because the saving was met.
        probe, verdict: the whole network after all cuts; ``None`` without any.
        targets: every layer with its benefit score, from the largest to the smallest, where the
            policy selects by one.
        alternatives: networks, as cuts, from the mildest to the one taken: what to fall back on.
        unconfirmed: why nothing is taken, where images set aside refused even the mildest of them.
    """

    choices: tuple[Choice, ...]
    refused: int
    accuracy_bound: bool
    stopped: bool
    probe: Probe | None = None
    verdict: Verdict | None = None
    targets: tuple[Target, ...] = ()
    alternatives: tuple[tuple[Choice, ...], ...] = ()
    unconfirmed: str = ""

    @property
    def cuts(self) -> dict[str, int]:
        """Group -> channels kept at each position, in the order taken."""
        return cuts_of(self.choices)


def cuts_of(choices: Iterable[Choice]) -> dict[str, int]:
    """Group -> channels kept at each position.

    Example:
        >>> cuts_of([Choice(group="fc", positions=1, size=8, rate=0.5, kept=4)])
        {'fc': 4}
    """
    return {choice.group: choice.kept for choice in choices}

"""Confirming a plan on selection images that did not choose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from primesvt.channels.widths import Widths
from primesvt.evaluation.confidence import Outcomes, paired_drop_bound
from primesvt.pruning.policies import AccuracyGate, PolicyResult, cuts_of
from primesvt.pruning.prober import Prober

__all__ = ["Confirmation", "confirm", "confirmed", "sequence"]

LADDER = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Accuracy of a pruned network on images that chose nothing, paired with the unpruned one.

    ``drop`` and its one-sided ``bound`` are differences of accuracy; ``accuracy`` is the smaller
    network's and ``tried`` counts the networks that were tested, the refused one included.
    """

    images: int
    accuracy: float
    drop: float
    bound: float
    tried: int


def sequence(alternatives: Sequence[Widths], saved: Callable[[Widths], int]) -> list[Widths]:
    """The networks to test in the confirmation, in a fixed order from mild to the one found.

    Those of the networks whose saving is next to 50, 70, 80, 90, 95 and 100 % of the
    last one's. The order is fixed before an image of the confirmation is used.
    """
    if not alternatives:
        return []
    savings = np.array([saved(cuts) for cuts in alternatives], dtype=float)
    places = {int(np.abs(savings - share * savings[-1]).argmin()) for share in LADDER}
    order = sorted(places | {len(alternatives) - 1}, key=lambda place: savings[place])
    return [alternatives[place] for place in order]


def confirmed(
    found: PolicyResult,
    prober: Prober,
    gate: AccuracyGate,
    *,
    outcomes: Callable[[nn.Module], Outcomes],
    before: Outcomes,
) -> tuple[PolicyResult, Confirmation | None]:
    """Confirm a policy's result, or the hardest milder one that images set aside do not refuse.

    Args:
        found: what a policy took, with milder networks to fall back on.
        prober: cuts networks.
        gate: what decided; its limit and level hold here too.
        outcomes: of a network on those images.
        before: the same of the unpruned network.
    """
    networks = {frozenset(cuts_of(c).items()): c for c in found.alternatives}
    order = sequence(list(map(cuts_of, networks.values())), prober.bytes_saved)
    cuts, confirmation = confirm(
        order,
        outcomes=lambda cuts: outcomes(prober.cut(cuts)),
        before=before,
        limit=gate.allowed,
        level=gate.level,
    )
    if cuts == found.cuts:
        return found, confirmation
    probe = prober.probe(cuts, full=True) if cuts else None
    milder = replace(
        found,
        choices=networks.get(frozenset(cuts.items()), ()),
        probe=probe,
        verdict=None if probe is None else gate.judge(probe),
        accuracy_bound=True,
        stopped=False,
        unconfirmed="" if cuts else _unconfirmed(prober, order, gate),
    )
    return milder, confirmation


def _unconfirmed(prober: Prober, order: Sequence[Widths], gate: AccuracyGate) -> str:
    """Why the confirmation leaves no plan, as a part of a sentence."""
    whole = prober.reference.parameter_bytes
    least, most = (prober.bytes_saved(cuts) / whole for cuts in (order[0], order[-1]))
    return (
        f"the search found {most:.2%} to save, but on the images set aside not even {least:.2%}"
        f" is within {100 * gate.allowed:.4g} points at {gate.level:.0%} confidence; allow a larger"
        " drop, or give more selection images"
    )


def confirm(
    candidates: Sequence[Widths],
    *,
    outcomes: Callable[[Widths], Outcomes],
    before: Outcomes,
    limit: float,
    level: float,
) -> tuple[Widths, Confirmation | None]:
    """The last network of a fixed sequence whose bound stays within the limit; no cuts if none is.

    Networks are tested from the mildest on, and the first that fails ends it. Testing in a fixed
    order, each at the full level, keeps the chance that any accepted network breaks the limit at
    ``1 - level``.

    Source: fixed-sequence testing, Maurer, Hothorn and Lehmacher (1995); used for limits on risk as
    in Angelopoulos et al., "Learn then test" (arXiv 2110.01052).
    """
    chosen: tuple[Widths, Confirmation | None] = ({}, None)
    before = before.astype(np.bool_)
    for tried, cuts in enumerate(candidates, start=1):
        after = outcomes(cuts).astype(np.bool_)
        lost, gained = int((before & ~after).sum()), int((~before & after).sum())
        bound = paired_drop_bound(lost, gained, len(after), level=level)
        if bound > limit:
            return chosen[0], None if chosen[1] is None else replace(chosen[1], tried=tried)
        found = Confirmation(
            images=len(after),
            accuracy=float(after.mean()),
            drop=(lost - gained) / len(after),
            bound=bound,
            tried=tried,
        )
        chosen = (cuts, found)
    return chosen

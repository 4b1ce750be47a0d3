"""Activations in front of blocks, kept for networks that are measured later."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Place", "Prefixes"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an activation was met: what entered a block of all networks that are equal before it.

    Args:
        inputs: names the data that the networks are run on, always in the same batches.
        block: the block that it enters.
        before: tells networks apart that differ in front of that block.
    """

    inputs: Hashable
    block: int
    before: Hashable


@dataclass(kw_only=True)
class Prefixes:
    """Activations by place and batch, as far as a memory ceiling allows.

    What does not fit is computed again. Data are always read from their first batch on, so the
    first batches of a place stay, and room is made by places that were not asked for longest.

    Args:
        ceiling: bytes that all of them may take together.

    Example:
        >>> import torch
        >>> place = Place(inputs="selection", block=3, before=())
        >>> prefixes = Prefixes(ceiling=100)
        >>> for batch in range(2):
        ...     prefixes.keep(place, batch, torch.zeros(20))
        >>> [prefixes.find(place, batch) is not None for batch in range(2)]
        [True, False]
    """

    ceiling: int
    taken: int = field(default=0, init=False)
    _kept: dict[Place, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def find(self, place: Place, batch: int) -> Tensor | None:
        """What was kept of a batch; nobody may write into it."""
        known = self._kept.get(place, {}).get(batch)
        if known is not None:
            self._kept[place] = self._kept.pop(place)  # asked for last
        return known

    def keep(self, place: Place, batch: int, activation: Tensor) -> None:
        """Keep an activation if there is room, or can be made."""
        size = activation.untyped_storage().nbytes()
        if size > self.ceiling:
            return
        for old in [other for other in self._kept if other != place]:
            if self.taken + size <= self.ceiling:
                break
            self.taken -= sum(t.untyped_storage().nbytes() for t in self._kept.pop(old).values())
        if self.taken + size <= self.ceiling:
            self._kept.setdefault(place, {})[batch] = activation
            self.taken += size

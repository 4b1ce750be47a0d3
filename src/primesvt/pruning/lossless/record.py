"""What the lossless step removed, counted apart from what a policy saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from primesvt._format import megabytes

__all__ = ["LosslessRecord", "Removed"]


@dataclass(frozen=True, kw_only=True)
class Removed:
    """How many channels of one group were removed because their value never changes.

    Attributes:
        group: the channel group.
        positions: its front positions (heads).
        channels: how many went at each of them.
        silent: of all that went, those that are always 0 where they are read.
        constant: the others: always the same value, which their readers' biases or norms took up.
    """

    group: str
    positions: int
    channels: int
    silent: int
    constant: int

    def seen(self, inputs: int) -> str:
        """What was observed of them on calibration inputs, in words for the plan.

        Example:
            >>> Removed(group="fc", positions=1, channels=3, silent=3, constant=0).seen(1200)
            'silent on 1,200 inputs'
        """
        kinds = (("silent", self.silent), ("constant", self.constant))
        return f"{' or '.join(kind for kind, n in kinds if n)} on {inputs:,} inputs"


@dataclass(frozen=True, kw_only=True)
class LosslessRecord:
    """What the lossless step removed, in figures relative to the unpruned network.

    No figure of a policy holds any of it: savings and memory limits of a policy count from the
    network that this step leaves.

    Attributes:
        inputs: on how many inputs the channels were watched; observed, not proved.
        checked: on how many inputs no prediction changed.
        parameters, parameter_bytes: all that went.
        share: ``parameter_bytes`` as a fraction of the unpruned network's.
        dead_parameters: those of them that no forward reads.
        merged_head: a distillation head was merged into the head.
        merged_chains: pairs of linear layers with no neuron in between that are one layer now.
        kept_chains: pairs that stayed, as a prediction changed without them.
        chain_parameters: what went with the merged pairs.
        channels: silent and constant channels, group by group.
        returned: groups that stayed whole, as a prediction changed without their channels.
    """

    inputs: int = 0
    checked: int = 0
    parameters: int = 0
    parameter_bytes: int = 0
    share: float = 0.0
    dead_parameters: int = 0
    merged_head: bool = False
    merged_chains: tuple[str, ...] = ()
    kept_chains: tuple[str, ...] = ()
    chain_parameters: int = 0
    channels: tuple[Removed, ...] = ()
    returned: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LosslessRecord:
        """Read what ``dataclasses.asdict`` made, from JSON too."""
        channels = tuple(Removed(**each) for each in content["channels"])
        named = ("returned", "merged_chains", "kept_chains")
        lists = {name: tuple(content.get(name, ())) for name in named}
        return cls(**{**content, "channels": channels, **lists})

    def of(self, group: str) -> Removed | None:
        """The channels that a group lost, or ``None``."""
        return next((each for each in self.channels if each.group == group), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report on what was removed; empty where nothing was."""
        found = []
        if self.parameters:
            same = f" No prediction on {self.checked:,} inputs changed." if self.checked else ""
            found.append(
                f"Lossless, before any pruning and in none of its figures: {self._parts()};"
                f" {megabytes(self.parameter_bytes)} ({self.share:.2%} of the parameter memory)."
                f"{same} Saving and memory limits count from the network after it."
            )
        if self.returned:
            found.append(
                f"Kept, as a prediction changed without their silent or constant channels: "
                f"{', '.join(self.returned)}."
            )
        if self.kept_chains:
            found.append(
                f"Not merged, as a prediction changed: {', '.join(self.kept_chains)} (two linear "
                "layers each)."
            )
        return tuple(found)

    def _parts(self) -> str:
        """What was removed, as parts of a sentence."""
        parts = []
        if self.dead_parameters:
            parts.append(f"{self.dead_parameters:,} parameters that no forward reads")
        if self.merged_head:
            parts.append("the distillation head, merged into the head")
        if self.merged_chains:
            pairs = _count(len(self.merged_chains), "pair")
            parts.append(
                f"{self.chain_parameters:,} parameters of {pairs} of linear layers with no neuron "
                "in between, merged into one layer each"
            )
        if self.channels:
            gone = sum(each.positions * each.channels for each in self.channels)
            kinds = Removed(
                group="",
                positions=1,
                channels=gone,
                silent=sum(each.silent for each in self.channels),
                constant=sum(each.constant for each in self.channels),
            )
            counted = f"{_count(gone, 'channel')} of {_count(len(self.channels), 'group')}"
            parts.append(f"{counted}, {kinds.seen(self.inputs)}")
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

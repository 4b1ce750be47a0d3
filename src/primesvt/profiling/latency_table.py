"""The latency table: timings of this machine, in a file from which a killed run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from primesvt._files import JsonlLog, parse_json, validated
from primesvt.channels.widths import Widths

__all__ = ["LatencyTable", "NetworkTime", "PartTime", "WidthTime"]

FORMAT = 1
_EARLIER = {"runtime": "pytorch"}  # of files that do not say it
WHOLE = ""  # the name of the network itself, among its parts


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """Milliseconds of the unpruned network, or of one block in it."""

    part: str
    milliseconds: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class WidthTime:
    """Time of a part in which one group keeps fewer channels, as a share of its time before."""

    group: str
    kept: int
    part: str
    share: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class NetworkTime:
    """Time of a pruned network, as a share of the unpruned one's time.

    ``low`` and ``high`` are the quartiles of that share over rounds.
    """

    cuts: Widths
    share: float
    low: float
    high: float
    runs: int


_KINDS = {"part": PartTime, "width": WidthTime, "network": NetworkTime}
Row = PartTime | WidthTime | NetworkTime


class LatencyTable:
    """All timings of one run, each taken once; with a path, kept in a file.

    Times are lower quartiles over rounds, and shares ratios of them: what other load on the machine
    adds moves those least.

    Every timing is one line, on disk before the next one starts; a line that a kill cut short is
    dropped. The first line says what all of them depend on.

    Example:
        >>> table = LatencyTable()
        >>> table.add(WidthTime(group="fc", kept=4, part="block", share=0.6, runs=9))
        >>> table.width("fc", 4).share, table.width("fc", 2)
        (0.6, None)
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.context: Mapping[str, Any] | None = None
        self._parts: dict[str, PartTime] = {}
        self._widths: dict[tuple[str, int], WidthTime] = {}
        self._networks: dict[frozenset[tuple[str, int]], NetworkTime] = {}
        self._log = None if path is None else JsonlLog(path)
        for number, line in self._log.lines() if self._log is not None else ():
            try:
                row = validated(dict[str, Any], parse_json(line))
                kind = row.pop("kind")
                if kind == "context" and row.pop("format") == FORMAT:
                    self.context = row
                else:
                    self._take(validated(_KINDS[kind], row))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"line {number} of {path} is no timing: {error}; delete the file to take all"
                    " anew"
                ) from error

    def part(self, name: str = WHOLE) -> PartTime | None:
        """The time of a part of the unpruned network; of all of it without a name."""
        return self._parts.get(name)

    def width(self, group: str, kept: int) -> WidthTime | None:
        """The timing with one group at a smaller width; ``None`` if it was not taken."""
        return self._widths.get((group, kept))

    def network(self, cuts: Widths) -> NetworkTime | None:
        """The timing of a pruned network; ``None`` if it was not taken."""
        return self._networks.get(frozenset(cuts.items()))

    def begin(self, context: Mapping[str, Any]) -> None:
        """Set what all timings depend on, or check that it is what they were taken under.

        Raises:
            ValueError: another machine, number of threads, model or batch size.
        """
        if self.context is None:
            self.context = dict(context)
            self._append({"kind": "context", "format": FORMAT, **context})
        for name, value in context.items():
            there = self.context.get(name, _EARLIER.get(name))
            if there != value:
                raise ValueError(
                    f"{self.path} holds times of another {name.replace('_', ' ')} ({there}, here "
                    f"{value}); go on where they were taken, or choose another run folder"
                )

    def add(self, row: Row) -> None:
        """Add a timing, and write it to the file."""
        self._take(row)
        kind = next(name for name, type_ in _KINDS.items() if isinstance(row, type_))
        self._append({"kind": kind, **asdict(row)})

    def _take(self, row: Row) -> None:
        if isinstance(row, PartTime):
            self._parts[row.part] = row
        elif isinstance(row, WidthTime):
            self._widths[row.group, row.kept] = row
        else:
            self._networks[frozenset(row.cuts.items())] = row

    def write_nothing(self) -> None:
        """Stop writing: timings that are added from now on stay in memory."""
        self._log = None

    def _append(self, content: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.append(json.dumps(content))

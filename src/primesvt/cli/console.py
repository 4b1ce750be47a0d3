"""The output of a command: tables or JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from primesvt._format import shown

if TYPE_CHECKING:
    from primesvt.models import CheckpointReport

__all__ = ["Console", "PlainProgress", "duration", "seconds_of"]

FIRST_LINE_AFTER = 2.0
NEXT_LINE_AFTER = 10.0


@dataclass(kw_only=True)
class Console:
    """Prints for a command; with ``as_json`` stdout carries one JSON object and nothing else.

    Of several processes at one job only the first speaks; ``rank`` is this one's number.
    """

    as_json: bool = False
    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")))
    out: RichConsole = field(default_factory=lambda: RichConsole(highlight=False))
    err: RichConsole = field(default_factory=lambda: RichConsole(stderr=True, highlight=False))

    def say(self, *parts: RenderableType) -> None:
        """Print text or tables for a person."""
        if not self.as_json and not self.rank:
            for part in parts:
                self.out.print(part, soft_wrap=False)

    def line(self, text: str) -> None:
        """Print one line of plain text, never wrapped or marked up."""
        if not self.as_json and not self.rank:
            self.out.print(Text(shown(text, keep="\n")), soft_wrap=True)

    def sentence(self, text: str) -> None:
        """Print a sentence over as many lines as it needs, all but the first indented."""
        self.line(textwrap.fill(shown(text), self.out.width, subsequent_indent="    "))

    def loaded(self, loaded: CheckpointReport | None) -> None:
        """Print what was inferred of an official checkpoint, and what was assumed."""
        for line in loaded.lines() if loaded else ():
            self.sentence(line)

    def result(self, content: Mapping[str, Any]) -> None:
        """Print the JSON object, in JSON mode."""
        if self.as_json and not self.rank:
            sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def error(self, message: str) -> None:
        """Print one clear line on stderr."""
        who = f"primesvt, process {self.rank}" if self.rank else "primesvt"
        self.err.print(Text(shown(f"{who}: {' '.join(message.split())}")), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[ProgressLine]:
        """A callable ``(stage, done, total)`` that shows rate and remaining time."""
        if self.rank:
            yield lambda stage, done, total: None
            return
        if not self.err.is_terminal:
            yield PlainProgress(sys.stderr)
            return
        with _bars(self.err) as bars:
            yield BarProgress(bars)


class ProgressLine(Protocol):
    """Called as ``(stage, done, total)``; a total of 0 means that it is not known."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""


class BarProgress:
    """One moving bar per stage, on a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks or done < self._bars.tasks[self._tasks[stage]].completed:
            named = escape(shown(stage))
            self._tasks[stage] = self._bars.add_task(named, total=total or None, detail="")
        detail = escape(shown(getattr(stage, "detail", "")))
        self._bars.update(self._tasks[stage], completed=done, total=total or None, detail=detail)


class PlainProgress:
    """Progress as a line now and then, for logs; none before two seconds have passed.

    Example:
        >>> import io
        >>> clock = iter([0.0, 4.0])
        >>> stream = io.StringIO()
        >>> progress = PlainProgress(stream, clock=lambda: next(clock))
        >>> progress("probing", 0, 90)
        >>> progress("probing", 30, 90)
        >>> print(stream.getvalue(), end="")
        probing: 30 of 90, 7.5 per second, 8 s left
    """

    def __init__(self, stream: TextIO, *, clock: Any = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._stage = ""
        self._begin = (0.0, 0)
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self._stage or done < self._begin[1]:
            self._stage, self._begin, self._next = stage, (now, done), now + FIRST_LINE_AFTER
        if now >= self._next:
            self._next = now + NEXT_LINE_AFTER
            detail = getattr(stage, "detail", "")
            begin, first = self._begin
            speed = (done - first) / (now - begin) if now > begin else 0.0
            parts = [f"{stage}: {done} of {total}" if total else f"{stage}: {done}"]
            if speed:
                parts.append(_rate(speed))
            if speed and total:
                parts.append(f"{duration((total - done) / speed)} left")
            self._stream.write(shown(", ".join([*parts, *([detail] if detail else [])])) + "\n")
            self._stream.flush()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else "", style="progress.data.speed")


def duration(seconds: float) -> str:
    """A duration in words, from seconds.

    Example:
        >>> duration(8.4), duration(75), duration(7260)
        ('8 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def seconds_of(text: str) -> float:
    """The seconds of a time with its unit; ``ValueError`` in one line for anything else.

    Example:
        >>> seconds_of("90s"), seconds_of("170min"), seconds_of("1.5h")
        (90.0, 10200.0, 5400.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", text)
    if found is None:
        raise ValueError(f"{text!r} is not a time; write a number and s, min or h, such as 170min")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]


def _rate(speed: float) -> str:
    return f"{speed:.3g} per second" if speed >= 0.5 else f"{1 / speed:.1f} s each"


def _bars(console: RichConsole) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=console,
    )

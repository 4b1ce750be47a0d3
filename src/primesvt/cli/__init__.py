"""The ``primesvt`` command: flags to library calls, and nothing else."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTED", "TERMINATED", "Terminated", "main", "termination"]

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """Raised when SIGTERM arrives, so that everything ends as after Ctrl-C."""


@contextmanager
def termination() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_: int, __: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``primesvt`` command and return its exit code."""
    try:
        with termination():  # a signal may arrive before the rest is imported
            from primesvt.cli.app import run
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        word = "terminated" if ended else "interrupted"
        sys.stderr.write(f"primesvt: {word}; nothing was written\n")
        return TERMINATED if ended else INTERRUPTED
    return run(list(sys.argv[1:] if argv is None else argv))

"""How Ctrl-C and SIGTERM end a command; imports nothing heavy, as a signal may come early."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTED", "TERMINATED", "Terminated", "termination"]

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

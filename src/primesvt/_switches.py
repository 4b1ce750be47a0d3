"""Settings of the whole process that are changed for as long as any thread needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class Switched:
    """A change of process-wide settings that several threads, or nested calls, may want at once.

    The first to enter makes the change and the last to leave takes it back: where each put back
    what it had found, two threads that overlap would leave the change in force for ever.

    Args:
        change: makes the change while it is entered.

    Example:
        >>> @contextmanager
        ... def loud():
        ...     print("on")
        ...     yield
        ...     print("off")
        >>> switched = Switched(loud)
        >>> with switched.on(), switched.on():
        ...     pass
        on
        off
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change, self._users = change, 0
        self._lock, self._made = threading.Lock(), ExitStack()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Keep the change in force in a ``with`` block."""
        with self._lock:
            if not self._users:
                self._made.enter_context(self._change())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._made.close()

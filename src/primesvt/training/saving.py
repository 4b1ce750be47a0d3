"""How often the state of a training is saved."""

from __future__ import annotations

import time
from collections.abc import Callable

from primesvt.processes import Processes

__all__ = ["Saver"]

COST = 20.0


class Saver:
    """Saves now, or when it is time again: after ``every`` seconds, or later where saving is slow.

    Args:
        save: called on all processes.
        every: seconds; 0 saves whenever it is asked.
        processes: the main one decides.

    Example:
        >>> import torch
        >>> saved = []
        >>> saver = Saver(lambda: saved.append(1), 0.0, Processes(device=torch.device("cpu")))
        >>> saver.if_due()
        >>> saved
        [1]
    """

    def __init__(self, save: Callable[[], None], every: float, processes: Processes) -> None:
        if not every >= 0:
            raise ValueError(f"save_every is {every}, but must be at least 0 seconds")
        self._save, self._every, self._processes = save, every, processes
        self._took, self._last = 0.0, time.monotonic()

    def now(self) -> None:
        """Save."""
        begin = time.monotonic()
        self._save()
        self._last = time.monotonic()
        self._took = self._last - begin

    def if_due(self) -> None:
        """Save, if the last time is long enough ago; at most a twentieth of all time goes there."""
        pause = self._every and max(self._every, COST * self._took)
        if self._processes.agree(time.monotonic() - self._last >= pause):
            self.now()

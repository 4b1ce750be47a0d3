"""The ``primesvt`` command: flags to library calls, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from primesvt.cli.signals import INTERRUPTED, TERMINATED, Terminated, termination

__all__ = ["main"]


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

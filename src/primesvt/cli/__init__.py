"""The ``primesvt`` command: flags to library calls, and nothing else."""

from primesvt.cli.app import main

__all__ = ["main"]

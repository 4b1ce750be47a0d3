"""Settings of a model as words on the command line."""

from primesvt.config import parse_overrides

__all__ = ["parse_overrides"]

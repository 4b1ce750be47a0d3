"""What every call is held to: counts in their ranges, errors of few kinds, random states kept."""

from __future__ import annotations

import functools
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = ["MOST_STEPS", "Fault", "check_counts", "guarded", "random_state_kept"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

HERE = Path(__file__).resolve().parent
# Errors of these packages say nothing to a user; one of another package's, or the user's own, does.
INNER = {"accelerate", "numpy", "onnx", "onnxruntime", "PIL", "primesvt", "pyarrow"} | {
    *("pydantic_core", "safetensors", "spikingjelly", "torch", "yaml")
}
MOST_STEPS = 4096  # time steps of an image


class Fault(ValueError):
    """Raised for an error that nobody foresaw; its cause is the error itself."""


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random generators of Python, NumPy and PyTorch after a ``with`` block.

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> with random_state_kept():
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    import numpy as np
    import torch

    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        torch.set_rng_state(tensors)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


def guarded(function: Callable[Given, Result], *, random_kept: bool) -> Callable[Given, Result]:
    """A public function whose callers meet no other errors than ValueError, TypeError and OSError.

    Another error becomes a ``ValueError`` of one line with the error as its cause: of the user's
    own code, which is named, or a ``Fault``. Exception classes of a user's own pass.

    Args:
        function: what is called.
        random_kept: the random generators are afterwards as before.

    Example:
        >>> guarded(lambda: {}["weight"], random_kept=False)()
        Traceback (most recent call last):
            ...
        ValueError: <doctest ...>, line 1, raised KeyError: 'weight'
    """

    @functools.wraps(function)
    def call(*args: Given.args, **options: Given.kwargs) -> Result:
        try:
            if not random_kept:
                return function(*args, **options)
            with random_state_kept():
                return function(*args, **options)
        except (ValueError, TypeError, OSError):
            raise
        except Exception as error:
            told = _told(error)
            if told is None:
                raise
            raise told from error

    return call


def _told(error: Exception) -> ValueError | None:
    """An error as one line; ``None`` for one of a kind that a user has defined."""
    home = type(error).__module__.partition(".")[0]
    if home not in INNER and home not in sys.stdlib_module_names:
        return None
    first = next(iter(str(error).splitlines()), "")
    what = f"{type(error).__name__}{first and ': '}{first}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ValueError(f"out of memory: {what}; try a smaller batch_size or model")
    place = _own_code(error)
    if place is not None:
        return ValueError(f"{place}, raised {what}")
    return Fault(f"a fault of primesvt itself, {what}; please report it with its traceback")


def _own_code(error: Exception) -> str | None:
    """The innermost place outside of any installed package that an error passed through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        inner = Path(frame.filename).is_relative_to(HERE) or "site-packages" in frame.filename
        if not inner and not frame.filename.startswith(("<frozen", sys.base_prefix)):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def check_counts(
    *,
    batch_size: object = None,
    workers: object = None,
    seed: object = None,
    time_steps: object = None,
) -> None:
    """Raise ``ValueError`` for a batch size, seed, time steps or workers out of range.

    Example:
        >>> check_counts(batch_size=64, seed=-1)
        Traceback (most recent call last):
            ...
        ValueError: seed is -1, but must be a whole number of at least 0 and below 2**63
    """
    for name, value, least, limit, most in (
        ("batch_size", batch_size, 1, 2**31, "2**31"),
        ("workers", workers, 0, 1025, "1025"),
        ("seed", seed, 0, 2**63, "2**63"),
        ("time_steps", time_steps, 1, MOST_STEPS + 1, str(MOST_STEPS + 1)),
    ):
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value < limit
        if value is not None and not whole:
            raise ValueError(
                f"{name} is {value!r}, but must be a whole number of at least {least} and below "
                f"{most}"
            )

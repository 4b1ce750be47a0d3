"""What a user allows and asks for: accuracy that may be lost; memory, time, potentials to save."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["Constraints", "parse_bytes"]

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_RUNTIMES = ("pytorch", "onnxruntime")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*")
_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?\s*%?\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The limits of a pruning run, and when it stops.

    Attributes:
        max_accuracy_drop: largest loss, in percentage points of top-1 with ``data``; in the
            score's own unit with ``score``.
        min_memory_saving: smallest saving of parameter memory: a fraction (``0.25``), or the bytes
            removed (``"8MB"``); ``None`` asks for nothing.
        max_parameter_memory: largest parameter memory of the result (``"8MB"``, or a number of
            bytes).
        stop_at_saving: stop as soon as the memory limit is met (and those below), instead of
            saving as much as the accuracy limit allows.
        max_latency: largest time of a forward pass, measured on this machine: a share of the
            unpruned network's (``0.67``), or a time (``"12ms"``).
        latency_batch: samples in that pass.
        latency_runtime: what computes it: ``pytorch``, or ``onnxruntime``, from an exported file
            on the CPU.
        max_membrane: largest memory of all membrane potentials per sample (``"60kB"``, or a number
            of bytes).

    Raises:
        ValueError: a limit that is negative, not a number or out of range.

    Example:
        >>> Constraints(max_accuracy_drop=2, min_memory_saving="100kB").required_bytes(400_000)
        100000
        >>> Constraints(min_memory_saving=25)
        Traceback (most recent call last):
            ...
        ValueError: min_memory_saving is 25, but a fraction lies in 0 .. 1; for 25 % write 0.25
    """

    max_accuracy_drop: float = 3.0
    min_memory_saving: float | str | None = 0.25
    max_parameter_memory: float | str | None = None
    stop_at_saving: bool = False
    max_latency: float | str | None = None
    latency_batch: int = 32
    latency_runtime: str = "pytorch"
    max_membrane: float | str | None = None

    def __post_init__(self) -> None:
        _check_number("max_accuracy_drop", self.max_accuracy_drop)
        saving = self.min_memory_saving
        if isinstance(saving, str):
            _saving(saving)
        elif saving is not None:
            _check_fraction(saving)
        _bytes_of("max_parameter_memory", self.max_parameter_memory)
        _bytes_of("max_membrane", self.max_membrane)
        if self.max_latency is not None:
            _time(self.max_latency)
        if isinstance(self.latency_batch, bool) or self.latency_batch < 1:
            raise ValueError(f"latency_batch is {self.latency_batch}, but must be at least 1")
        if self.latency_runtime not in _RUNTIMES:
            raise ValueError(
                f"unknown latency_runtime {self.latency_runtime!r}; known: {', '.join(_RUNTIMES)}"
            )
        if self.latency_runtime != _RUNTIMES[0] and self.max_latency is None:
            raise ValueError(
                f"latency_runtime is {self.latency_runtime!r}, but without max_latency nothing is "
                "timed by it; give max_latency, or leave latency_runtime out"
            )
        if self.stop_at_saving and saving is None and self.max_parameter_memory is None:
            raise ValueError(
                "stop_at_saving needs a memory limit to stop at; "
                "give min_memory_saving or max_parameter_memory"
            )

    def allowed_drop(self, reference: float, *, points: bool) -> float:
        """The largest drop as a difference of mean outcomes, checked against the unpruned score.

        Args:
            reference: the score of the unpruned network; an accuracy as a fraction.
            points: the limit is in percentage points of accuracy, not in the score's own unit.
        """
        unit = 100.0 if points else 1.0
        if reference <= 0 and points:
            raise ValueError(
                "the unpruned model has an accuracy of 0: nothing can be compared with it; "
                "check that data and model belong together"
            )
        if reference > 0 and self.max_accuracy_drop >= reference * unit:
            what, of = ("accuracy", " points") if points else ("score", "")
            raise ValueError(
                f"max_accuracy_drop is {self.max_accuracy_drop:g}, but the unpruned {what} is only "
                f"{reference * unit:.4g}{of}; give a smaller limit"
            )
        return self.max_accuracy_drop / unit

    def required_bytes(self, before: int) -> int:
        """Parameter bytes that must go from a model of ``before`` bytes; 0 asks for nothing."""
        limits = [0]
        if self.min_memory_saving is not None:
            limits.append(self._saved_bytes(before))
        if self.max_parameter_memory is not None:
            limits.append(before - self._largest_bytes())
        return max(limits)

    def allowed_milliseconds(self, before: float) -> float | None:
        """The largest time of a forward pass, of a network that took so many milliseconds.

        Example:
            >>> Constraints(max_latency=0.5).allowed_milliseconds(30.0)
            15.0
            >>> Constraints(max_latency="12ms").allowed_milliseconds(30.0)
            12.0
        """
        if self.max_latency is None:
            return None
        share, milliseconds = _time(self.max_latency)
        return milliseconds if share is None else share * before

    @property
    def allowed_membrane_bytes(self) -> int | None:
        """The largest memory of potentials per sample."""
        return _bytes_of("max_membrane", self.max_membrane)

    @property
    def steers(self) -> bool:
        """There is a limit beside accuracy and parameter memory."""
        return self.max_latency is not None or self.max_membrane is not None

    def _saved_bytes(self, before: int) -> int:
        asked = self.min_memory_saving
        assert asked is not None
        number = _saving(asked) if isinstance(asked, str) else float(asked)
        if isinstance(number, float):
            # A fraction such as 0.1 of 30 bytes is 3 bytes, not 4 by a rounding error.
            return math.ceil(number * before - 1e-9 * before)
        if number >= before:
            raise ValueError(
                f"min_memory_saving is {asked} ({number:,} bytes), but the model's parameters have "
                f"only {before:,} bytes; ask for less"
            )
        return int(number)

    def _largest_bytes(self) -> int:
        asked = _bytes_of("max_parameter_memory", self.max_parameter_memory)
        assert asked is not None
        return asked


def parse_bytes(text: str, *, name: str = "the size") -> int:
    """Bytes from a number with a unit: kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024.

    Example:
        >>> parse_bytes("8MB"), parse_bytes("1.5 KiB")
        (8000000, 1536)
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"{name} is {text!r}, which is no size; write a number and a unit, such as '8MB' "
            "(MB = 1e6 bytes) or '7.5MiB' (MiB = 2**20 bytes)"
        )
    size = round(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"{name} is {text!r}; it must be at least one byte")
    return size


def _bytes_of(name: str, asked: float | str | None) -> int | None:
    """A largest size in bytes."""
    if isinstance(asked, str):
        return parse_bytes(asked, name=name)
    if asked is None:
        return None
    _check_number(name, asked)
    return int(asked)


def _time(asked: float | str) -> tuple[float | None, float]:
    """A share of the unpruned network's time, or ``None`` and milliseconds."""
    fix = "write a share of the unpruned network's time, such as 0.67, or a time such as '12ms'"
    if isinstance(asked, str) and (match := _SIZE.fullmatch(asked)) is not None:
        if match[2] not in _MILLISECONDS or float(match[1]) == 0:
            raise ValueError(f"max_latency is {asked!r}; {fix}")
        return None, float(match[1]) * _MILLISECONDS[match[2]]
    try:
        share = float(asked)
    except ValueError as error:
        raise ValueError(f"max_latency is {asked!r}; {fix}") from error
    if isinstance(asked, bool) or not 0 < share < 1:
        raise ValueError(f"max_latency is {asked}, but a share lies between 0 and 1; {fix}")
    return share, 0.0


def _saving(text: str) -> float | int:
    """A fraction (float) or bytes (int)."""
    if _NUMBER.fullmatch(text):
        percent = text.strip().endswith("%")
        number = float(text.strip().rstrip("%"))
        if percent:
            raise ValueError(f"min_memory_saving is {text!r}; write it as {number / 100:g}")
        _check_fraction(number)
        return number
    return parse_bytes(text, name="min_memory_saving")


def _check_fraction(value: float) -> None:
    _check_number("min_memory_saving", value)
    if value < 1:
        return
    if 1 < value < 100:
        fix = f"for {value:g} % write {value / 100:g}"
    else:
        fix = "for bytes give a unit, as in '8MB'"
    raise ValueError(f"min_memory_saving is {value:g}, but a fraction lies in 0 .. 1; {fix}")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, but must be a number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}, but must be a finite number of at least 0")

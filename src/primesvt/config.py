"""What a user allows and asks for: accuracy that may be lost; memory, time, potentials to save."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "DATA",
    "PRESETS",
    "Constraints",
    "Limits",
    "Method",
    "PruneRecipe",
    "RunOptions",
    "Selection",
    "describe",
    "parse_bytes",
    "parse_overrides",
    "read_recipe",
    "unset",
]


DATA = tyro.conf.arg(
    metavar="DATA",
    help="'digits'; a folder: train/CLASS/*.png beside val/, or train.parquet and test.parquet; "
    "event frames as .npz or .pt; an event data set, as in dvs128gesture:FOLDER. When not given, "
    "what the model was trained or pruned on, if that is on record.",
    help_behavior_hint="",
)

_Flat = tyro.conf.arg(name="")
Policy = Literal["allocate", "prime", "psvit", "uniform", "global", "random"]
Importance = Literal[
    "obs",
    "activity",
    "taylor",
    "l2",
    "l1",
    "l2_folded",
    "firing_rate",
    "membrane",
    "random",
]


def unset(metavar: str, *, name: str | None = None) -> Any:
    """A flag that nothing stands for until it is given."""
    return tyro.conf.arg(metavar=metavar, name=name, help_behavior_hint="")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Limits(_Section):
    """How much accuracy may be lost, how much memory must be saved."""

    max_accuracy_drop: Annotated[float, tyro.conf.arg(metavar="POINTS")] = 3.0
    """Largest loss of top-1 accuracy, in percentage points."""
    min_memory_saving: Annotated[float | str | None, unset("SIZE")] = None
    """Smallest saving of parameter memory: a fraction (0.25) or bytes removed (8MB)."""
    max_parameter_memory: Annotated[str | None, unset("SIZE")] = None
    """Largest parameter memory of the result (8MB; MB = 1e6 bytes)."""
    stop_at_saving: bool = False
    """Stop as soon as the memory limit is met, instead of saving as much as accuracy allows."""
    max_latency: Annotated[float | str | None, unset("TIME")] = None
    """Largest time of a forward pass here: a share of the unpruned model's (0.67), or 12ms."""
    latency_batch: Annotated[int, Field(ge=1), tyro.conf.arg(metavar="N")] = 32
    """Images in that forward pass."""
    latency_runtime: Literal["pytorch", "onnxruntime"] = "pytorch"
    """What runs it: PyTorch, or onnxruntime from an exported file, as on a device."""
    max_membrane: Annotated[str | None, unset("SIZE")] = None
    """Largest memory of all membrane potentials per image (60kB)."""


class Selection(_Section):
    """Which channel groups may be cut; `primesvt inspect MODEL` lists their names."""

    include: Annotated[tuple[str, ...], unset("GLOB ...")] = ()
    """Only groups whose name matches one of these globs, such as '*.block3_*.mlp.*'."""
    exclude: Annotated[tuple[str, ...], unset("GLOB ...")] = ()
    """No group whose name matches one of these globs."""
    include_streams: bool = False
    """Cut residual-stream groups too."""


class Method(_Section):
    """How layers are probed, chosen and cut; docs/method.md says what each reading means."""

    policy: Policy = "allocate"
    """allocate: all rates together. prime: the paper's walk. The others are to compare with."""
    importance: Annotated[Importance, tyro.conf.arg(metavar="NAME")] = "obs"
    """Ranks channels: obs, activity, taylor, l2, l1, l2_folded, firing_rate, membrane, random."""
    recovery: Literal["refit", "bn", "none"] = "refit"
    """What makes up for a cut: least squares and batch norm, batch norm alone, or nothing."""
    lossless: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: removed)")] = True
    """Remove first, and count apart, what changes no prediction, such as silent channels."""
    reading: Literal["A", "B"] = "A"
    """Of prime. A: a layer's highest tolerated rate, then down to what passes. B: its best."""
    gate: Literal["point", "bound"] = "bound"
    """What must stay within the limit: the measured drop, or an upper bound of the true drop."""
    level: Annotated[float, Field(ge=0.5, lt=1), tyro.conf.arg(metavar="FRACTION")] = 0.95
    """Confidence of that one-sided bound."""
    confirm: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: confirmed)")] = True
    """Confirm the plan on selection images set aside, where there are enough (gate bound)."""
    exact: bool = False
    """Measure every rate of every layer (of prime), and every network on all selection images."""
    full_curves: bool = False
    """Of prime: measure every rate of every layer, for plots and for --from."""
    race_error: Annotated[float, Field(gt=0, le=0.5), tyro.conf.arg(metavar="FRACTION")] = 0.05
    """Chance of rejecting early a network that would have passed."""
    rates: Annotated[tuple[float, ...] | None, unset("RATE ...")] = None
    """Pruning rates; when not given, those that docs/method.md says for the policy."""
    channel_multiple: Annotated[int, Field(ge=1), tyro.conf.arg(metavar="N")] = 1
    """Kept channels are multiples of N, per layer or attention head (8 or 16 suit SIMD)."""
    target_threshold: Annotated[float, Field(ge=0, le=1), tyro.conf.arg(metavar="FRACTION")] = 0.0
    """Targets reach at least this fraction of the best benefit score; 0 deselects no layer."""
    order: Literal["producer", "group"] = "producer"
    """What makes a layer large: parameters of the producing layers, or of all group members."""


class RunOptions(_Section):
    """Where and how the run computes."""

    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Device such as cpu, cuda or cuda:1."""
    batch_size: Annotated[int, Field(ge=1), tyro.conf.arg(metavar="N")] = 64
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0), tyro.conf.arg(metavar="N")] = 0
    """Processes that decode images; 0 decodes in this one."""
    memory_limit: Annotated[str | None, unset("SIZE")] = None
    """What networks measured together may take, with the activations of one batch (4GB)."""
    latency: bool = False
    """Measure at the end how long the networks before and after take (a few seconds)."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of every split and draw."""
    selection_from_train: bool = False
    """Choose on training images where no other set is labelled; marked in the report."""
    verify: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: checked)")] = True
    """Check first, on a copy, that every group can be cut exactly."""


class PruneRecipe(_Section):
    """All that a pruning run is asked to do.

    Example:
        >>> recipe = PruneRecipe(model="sdt_v2_digits", limits=Limits(max_accuracy_drop=2))
        >>> PruneRecipe.model_validate(recipe.to_dict()) == recipe
        True
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Name in the registry, checkpoint file (.pth, .safetensors) or saved folder."""
    data: Annotated[str | None, DATA] = None
    time_steps: Annotated[int | None, Field(ge=1), unset("T")] = None
    """Time steps per image; the model's own when not given."""
    family: Annotated[str | None, unset("NAME")] = None
    """Family of an official checkpoint; its tensors decide when not given."""
    override: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, unset("NAME=VALUE")] = ()
    """A setting that the tensors of an official checkpoint do not tell; may be given often."""
    limits: Annotated[Limits, _Flat] = Limits()
    selection: Annotated[Selection, _Flat] = Selection()
    method: Annotated[Method, _Flat] = Method()
    run: Annotated[RunOptions, _Flat] = RunOptions()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the recipe file."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe file that asks for exactly this."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "policy": "prime",
        "importance": "l2",
        "recovery": "none",
        "reading": "A",
        "gate": "point",
        "confirm": False,
        "lossless": False,
        "exact": True,
        "target_threshold": 0.0,
        "order": "producer",
    },
    "best": {
        "policy": "allocate",
        "importance": "obs",
        "recovery": "refit",
        "gate": "bound",
        "confirm": True,
        "lossless": True,
    },
}


def read_recipe(path: str | Path) -> PruneRecipe:
    """Read a recipe file; fields left out keep their defaults.

    Raises ``ValueError`` with one line per unknown field or value that is not allowed.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no recipe: expected 'field: value' lines")
    try:
        return PruneRecipe.model_validate({"model": "", **content})
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """What a typed config refuses, in one line.

    Example:
        >>> try:
        ...     RunOptions.model_validate({"batch_size": 0, "sede": 1})
        ... except ValidationError as error:
        ...     print(describe(error))
        batch_size: 0, input should be greater than or equal to 1; sede: unknown field
    """
    return "; ".join(_one(problem) for problem in error.errors())


def _one(problem: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown field"
    message = str(problem["msg"])
    return f"{place}: {problem['input']!r}, {message[:1].lower()}{message[1:]}"


_WORDS = {"true": True, "false": False, "none": None}


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as settings; a word of another form raises ``ValueError``.

    Example:
        >>> parse_overrides(["tau=1.5", "num_heads=1,4,8", "dvs_mode=true", "pooling_stat=0011"])
        {'tau': 1.5, 'num_heads': (1, 4, 8), 'dvs_mode': True, 'pooling_stat': '0011'}
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise ValueError(f"--override {word!r} is no NAME=VALUE, such as num_heads=12")
        if name in settings:
            raise ValueError(f"--override gives {name} twice")
        settings[name.replace("-", "_")] = _value(text)
    return settings


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    # A leading zero is part of a text such as 0011, never of a number.
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    if re.fullmatch(r"-?(0|[1-9]\d*)?\.\d+|-?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    return text


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

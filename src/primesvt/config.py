"""Every option of a pruning run, stated once: its name, type, default, check and help sentence.

The flags and the help of ``primesvt prune``, the fields of ``recipe.yaml`` and the keywords of
``primesvt.prune`` are made from these classes. Policies, importance criteria and recoveries are
names here; ``primesvt.registry`` knows what they stand for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

import tyro
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from primesvt._files import read_yaml
from primesvt._guard import MOST_STEPS

__all__ = [
    "DATA",
    "PRESETS",
    "Constraints",
    "Limits",
    "Method",
    "OptionGroup",
    "Preset",
    "PruneConfig",
    "PruneOptions",
    "RunOptions",
    "Selection",
    "check_preset",
    "describe",
    "from_old_recipe",
    "override_text",
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
Preset = Literal["paper", "best"]
Runtime = Literal["pytorch", "onnxruntime"]


def unset(metavar: str, *, name: str | None = None) -> Any:
    """Settings of a flag without a default value, so that its help shows none."""
    return tyro.conf.arg(metavar=metavar, name=name, help_behavior_hint="")


class OptionGroup(BaseModel):
    """Options of one kind; a value that is not allowed is a ``ValueError`` of one line."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(describe(error)) from None


class Limits(OptionGroup):
    """How much accuracy may be lost, and how much memory, time and potential must be saved.

    ``primesvt.Constraints`` is another name of this class.

    Raises:
        ValueError: a limit that is negative, not a number or out of range.

    Example:
        >>> Limits(max_accuracy_drop=2, min_memory_saving="100kB").required_bytes(400_000)
        100000
        >>> Limits(min_memory_saving=25)
        Traceback (most recent call last):
            ...
        ValueError: min_memory_saving is 25, but a fraction lies in 0 .. 1; for 25 % write 0.25
    """

    max_accuracy_drop: Annotated[float, tyro.conf.arg(metavar="POINTS")] = 3.0
    """Largest loss of top-1 accuracy, in percentage points."""
    min_memory_saving: Annotated[float | str | None, unset("SIZE")] = None
    """Smallest saving of parameter memory: a fraction (0.25) or bytes removed (8MB)."""
    max_parameter_memory: Annotated[float | str | None, unset("SIZE")] = None
    """Largest parameter memory of the result (8MB; MB = 1e6 bytes)."""
    stop_at_saving: bool = False
    """Stop as soon as the memory limit is met, instead of saving as much as accuracy allows."""
    max_latency: Annotated[float | str | None, unset("TIME")] = None
    """Largest time of a forward pass here: a share of the unpruned model's (0.67), or 12ms."""
    latency_batch: Annotated[int, tyro.conf.arg(metavar="N")] = 32
    """Images in that forward pass."""
    latency_runtime: Runtime = "pytorch"
    """What runs it: PyTorch, or onnxruntime from an exported file, as on a device."""
    max_membrane: Annotated[float | str | None, unset("SIZE")] = None
    """Largest memory of all membrane potentials per image (60kB)."""

    @model_validator(mode="before")
    @classmethod
    def _check_values(cls, values: Any) -> Any:
        """Check each limit by itself, before its type: the messages say what to write instead."""
        if isinstance(values, Mapping):
            for name, value in values.items():
                if name in _CHECKS:
                    _CHECKS[name](name, value)
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Limits:
        """Refuse limits that mean nothing without another one."""
        if self.latency_runtime != "pytorch" and self.max_latency is None:
            raise ValueError(
                f"latency_runtime is {self.latency_runtime!r}, but without max_latency nothing is "
                "timed by it; give max_latency, or leave latency_runtime out"
            )
        memory = (self.min_memory_saving, self.max_parameter_memory)
        if self.stop_at_saving and memory == (None, None):
            raise ValueError(
                "stop_at_saving needs a memory limit to stop at; "
                "give min_memory_saving or max_parameter_memory"
            )
        return self

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
            largest = _bytes_of("max_parameter_memory", self.max_parameter_memory)
            assert largest is not None
            limits.append(before - largest)
        return max(limits)

    def allowed_milliseconds(self, before: float) -> float | None:
        """The largest time of a forward pass, of a network that took so many milliseconds.

        Example:
            >>> Limits(max_latency=0.5).allowed_milliseconds(30.0)
            15.0
            >>> Limits(max_latency="12ms").allowed_milliseconds(30.0)
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
        """Whether there is a limit beside accuracy and parameter memory."""
        return self.max_latency is not None or self.max_membrane is not None

    def _saved_bytes(self, before: int) -> int:
        """The smallest saving in bytes, of a model of ``before`` bytes."""
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


Constraints = Limits


class Selection(OptionGroup):
    """Which channel groups may be cut; `primesvt inspect MODEL` lists their names."""

    include: Annotated[tuple[str, ...], unset("GLOB ...")] = ()
    """Only groups whose name matches one of these globs, such as '*.block3_*.mlp.*'."""
    exclude: Annotated[tuple[str, ...], unset("GLOB ...")] = ()
    """No group whose name matches one of these globs."""
    include_streams: bool = False
    """Cut residual-stream groups too."""

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _check_globs(cls, value: Any) -> Any:
        """Refuse a single text, which would be taken for a list of letters."""
        if isinstance(value, str):
            raise ValueError(f"must be a list of globs, as in [{value!r}]")
        return value


class Method(OptionGroup):
    """How layers are probed, chosen and cut; docs/method.md says what each choice means."""

    policy: str = "allocate"
    """allocate: all rates together. prime: the paper's walk. The others are to compare with."""
    policy_options: Annotated[dict[str, Any], tyro.conf.Fixed, tyro.conf.Suppress] = {}
    """Options of the policy itself, by name; `--set policy.NAME=VALUE` gives one."""
    importance: str = "obs"
    """Ranks the channels of a layer: those of least importance are removed."""
    recovery: str = "refit"
    """What makes up for a cut: all layers fitted to the unpruned network (slow), least squares and
    batch norm, batch norm alone, or nothing."""
    lossless: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: removed)")] = True
    """Remove first, and count apart, what changes no prediction, such as silent channels."""
    gate: Literal["point", "bound"] = "bound"
    """What must stay within the limit: the measured drop, or an upper bound of the true drop."""
    level: Annotated[float, Field(ge=0.5, lt=1), tyro.conf.arg(metavar="FRACTION")] = 0.95
    """Confidence of that one-sided bound."""
    confirm: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: confirmed)")] = True
    """Confirm the plan on selection images set aside, where there are enough (gate bound)."""
    exact: bool = False
    """Measure every rate of every layer (of prime), and every network on all selection images."""
    race_error: Annotated[float, Field(gt=0, le=0.5), tyro.conf.arg(metavar="FRACTION")] = 0.05
    """Chance of rejecting early a network that would have passed."""
    rates: Annotated[tuple[float, ...] | None, unset("RATE ...")] = None
    """Pruning rates; when not given, those that docs/method.md says for the policy."""
    channel_multiple: Annotated[int, Field(ge=1, strict=True), tyro.conf.arg(metavar="N")] = 1
    """Kept channels are multiples of N, per layer or attention head (8 or 16 suit SIMD)."""
    order: Literal["producer", "group"] = "producer"
    """What makes a layer large: parameters of the producing layers, or of all group members."""

    @field_validator("rates")
    @classmethod
    def _check_rates(cls, rates: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Sort the rates and drop repetitions; each must lie between 0 and 1."""
        if rates is None:
            return None
        wrong = [rate for rate in rates if not 0 < rate < 1]
        if wrong or not rates:
            named = f"{wrong[0]:g}" if wrong else "none"
            raise ValueError(f"must lie between 0 and 1, such as 0.1 0.5 0.9; got {named}")
        return tuple(sorted(set(rates)))


class RunOptions(OptionGroup):
    """Where and how the run computes."""

    device: Annotated[str | None, unset("DEVICE")] = None
    """Device such as cpu, cuda or cuda:1; where the model is when not given, as on the CPU."""
    batch_size: Annotated[int, Field(ge=1, strict=True), tyro.conf.arg(metavar="N")] = 64
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0, strict=True), tyro.conf.arg(metavar="N")] = 0
    """Processes that decode images; 0 decodes in this one."""
    memory_limit: Annotated[int | str | None, unset("SIZE")] = None
    """What networks measured together may take, with the activations of one batch (4GB)."""
    latency: bool = False
    """Measure at the end how long the networks before and after take (a few seconds)."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True), tyro.conf.arg(metavar="N")] = 0
    """Seed of every split and draw."""
    selection_from_train: bool = False
    """Choose on training images where no other set is labelled; marked in the report."""
    verify: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: checked)")] = True
    """Check first, on a copy, that every group can be cut exactly."""

    @model_validator(mode="after")
    def _check_memory(self) -> RunOptions:
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise ValueError(
                f"memory_limit is {self.memory_limit}, but must be above 0, such as '4GB'"
            )
        return self

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes."""
        if isinstance(self.memory_limit, str):
            return parse_bytes(self.memory_limit, name="memory_limit")
        return self.memory_limit


class PruneConfig(OptionGroup):
    """All that a pruning run is asked to do; ``recipe.yaml`` holds just this.

    Example:
        >>> config = PruneConfig(model="sdt_v2_digits", limits=Limits(max_accuracy_drop=2))
        >>> PruneConfig.model_validate(config.to_dict()) == config
        True
        >>> config.with_options(policy="prime", max_accuracy_drop=1).limits.max_accuracy_drop
        1.0
    """

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """Name in the registry, checkpoint file (.pth, .safetensors) or saved folder."""
    data: Annotated[str | None, DATA] = None
    time_steps: Annotated[int | None, Field(ge=1, le=MOST_STEPS), unset("T")] = None
    """Time steps per image; the model's own when not given."""
    family: Annotated[str | None, unset("NAME")] = None
    """Family of an official checkpoint; its tensors decide when not given."""
    override: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, unset("NAME=VALUE")] = ()
    """A setting that the tensors of an official checkpoint do not tell; may be given often."""
    container: Annotated[str | None, unset("KEY")] = None
    """Key under which a checkpoint file has the weights, where it has several sets of them."""
    key_map: Annotated[str | None, unset("FILE")] = None
    """Official names for tensors that have others (YAML or JSON); null leaves tensors out."""
    limits: Annotated[Limits, _Flat] = Limits()
    selection: Annotated[Selection, _Flat] = Selection()
    method: Annotated[Method, _Flat] = Method()
    run: Annotated[RunOptions, _Flat] = RunOptions()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the recipe file."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The text of the recipe file that asks for exactly this."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def with_options(self, *, preset: str | None = None, **options: Any) -> PruneConfig:
        """A copy with other options, given by their own names whatever section they stand in.

        Args:
            preset: name of a set of choices; an option that contradicts it is refused.
            options: fields of ``limits``, ``selection``, ``method`` and ``run``.

        Raises:
            ValueError: an unknown option or preset, or a value that is not allowed.
        """
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        named = {} if preset is None else PRESETS[preset]
        for name in named.keys() & options.keys():
            check_preset(str(preset), name, options[name])
        given = {**named, **options}
        for name in given:
            _check_known(name)
        if given.get("policy", self.method.policy) != self.method.policy:
            given.setdefault("policy_options", {})  # those of the other policy mean nothing here
        values = self.model_dump()
        for section, kind in SECTIONS.items():
            values[section] |= {name: given[name] for name in kind.model_fields if name in given}
        return PruneConfig(**values)


SECTIONS: Mapping[str, type[OptionGroup]] = {
    "limits": Limits,
    "selection": Selection,
    "method": Method,
    "run": RunOptions,
}


class PruneOptions(TypedDict, total=False):
    """The options of a run as keywords of ``primesvt.prune``, for editors and type checkers.

    ``importance`` may be a function too. ``preset`` names a set of choices, ``from_run`` the folder
    of an earlier run whose probes are used again.
    """

    preset: Preset | None
    from_run: str | Path | None
    max_accuracy_drop: float
    min_memory_saving: float | str | None
    max_parameter_memory: float | str | None
    stop_at_saving: bool
    max_latency: float | str | None
    latency_batch: int
    latency_runtime: Runtime
    max_membrane: float | str | None
    include: Sequence[str]
    exclude: Sequence[str]
    include_streams: bool
    policy: str
    policy_options: Mapping[str, Any]
    importance: str | Callable[..., Any]
    recovery: str
    lossless: bool
    gate: Literal["point", "bound"]
    level: float
    confirm: bool
    exact: bool
    race_error: float
    rates: Sequence[float] | None
    channel_multiple: int
    order: Literal["producer", "group"]
    device: str | None
    batch_size: int
    workers: int
    memory_limit: int | str | None
    latency: bool
    seed: int
    selection_from_train: bool
    verify: bool


def _check_known(name: str) -> None:
    """Raise ``ValueError`` for a name that no option has."""
    known = [field for kind in SECTIONS.values() for field in kind.model_fields]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        raise ValueError(f"unknown option {name!r}{hint}")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "policy": "prime",
        "importance": "l2",
        "policy_options": {"reading": "A", "target_threshold": 0.0},
        "recovery": "none",
        "gate": "point",
        "confirm": False,
        "lossless": False,
        "exact": True,
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


def check_preset(preset: str, name: str, value: Any, *, flag: str = "") -> None:
    """Raise ``ValueError`` where an option contradicts a preset; ``flag`` is how it was given.

    Of the options of a policy only those count that the preset names.
    """
    meant = PRESETS[preset][name]
    if isinstance(meant, Mapping) and isinstance(value, Mapping):
        value = {part: value.get(part, meant[part]) for part in meant}
    if value != meant:
        word = "--preset" if flag else "preset"
        raise ValueError(
            f"{word} {preset} means {name} {meant}, not {value}; leave out {word} or {flag or name}"
        )


def read_recipe(path: str | Path) -> PruneConfig:
    """Read a recipe file; fields left out keep their defaults, and older forms are understood.

    Raises ``ValueError`` with one line per unknown field or value that is not allowed.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise ValueError(f"there is no recipe file {str(path)!r}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no recipe: expected 'field: value' lines")
    try:
        return PruneConfig(**from_old_recipe({str(name): value for name, value in content.items()}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# Options of one policy that had fields of their own in recipes of version 0.1.
_OWNERS = {"reading": "prime", "target_threshold": "prime", "full_curves": "prime"}


def from_old_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of an older recipe file to today's form; today's stays as it is.

    Version 0.1 wrote two other forms: on the command line with the options of ``prime`` among those
    of all policies, and in Python with all options on one level.

    Example:
        >>> from_old_recipe({"policy": "prime", "reading": "B", "seed": 1})
        {'method': {'policy': 'prime', 'policy_options': {'reading': 'B'}}, 'run': {'seed': 1}}
    """
    content = dict(content)
    if "constraints" in content:  # in Python nothing said whether times were measured
        content = {"latency": False, "limits": content.pop("constraints"), **content}
    places = {name: section for section, kind in SECTIONS.items() for name in kind.model_fields}
    for name in [*places, *_OWNERS]:
        if name in content:
            place = places.get(name, "method")
            section = content.get(place) or {}
            if isinstance(section, Mapping):  # of another kind it is refused later
                content[place] = {**section, name: content.pop(name)}
    method = content.get("method")
    if isinstance(method, Mapping) and method.keys() & _OWNERS.keys():
        own = {n: method[n] for n in _OWNERS if n in method and method.get("policy") == _OWNERS[n]}
        content["method"] = {name: method[name] for name in method if name not in _OWNERS}
        if own:
            content["method"]["policy_options"] = own
    return content


def describe(error: ValidationError) -> str:
    """All problems that a typed config found, in one line.

    Example:
        >>> class Training(BaseModel):
        ...     model_config = ConfigDict(extra="forbid")
        ...     batch_size: Annotated[int, Field(ge=1, strict=True)]
        >>> try:
        ...     Training.model_validate({"batch_size": 0, "sede": 1})
        ... except ValidationError as error:
        ...     print(describe(error))
        batch_size: 0, input should be greater than or equal to 1; sede: unknown field
    """
    return "; ".join(_one(problem) for problem in error.errors())


def _one(problem: Mapping[str, Any]) -> str:
    """One problem of pydantic's as a part of a line."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown field"
    message = str(problem["msg"])
    if problem["type"] == "value_error":  # a sentence of ours, which says where by itself
        message = str(problem["ctx"]["error"])
        inner = problem["loc"] and problem["loc"][-1] not in SECTIONS
        return f"{place} {message}" if inner else message
    return f"{place}: {problem['input']!r}, {message[:1].lower()}{message[1:]}"


_WORDS = {"true": True, "false": False, "none": None}


def parse_overrides(
    words: Iterable[str],
    *,
    flag: str = "--override",
    prefix: str = "",
    example: str = "num_heads=12",
) -> dict[str, Any]:
    """``NAME=VALUE`` words as settings; a word of another form raises ``ValueError``.

    Args:
        words: what was given, each with the prefix.
        flag, prefix, example: how the words are given, for messages.

    Example:
        >>> parse_overrides(["tau=1.5", "num_heads=1,4,8", "dvs_mode=true", "pooling_stat=0011"])
        {'tau': 1.5, 'num_heads': (1, 4, 8), 'dvs_mode': True, 'pooling_stat': '0011'}
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.removeprefix(prefix).partition("=")
        if not (word.startswith(prefix) and name and equals and text):
            raise ValueError(f"{flag} {word!r} is no {prefix}NAME=VALUE, such as {example}")
        if name in settings:
            raise ValueError(f"{flag} gives {prefix}{name} twice")
        settings[name.replace("-", "_")] = _value(text)
    return settings


def override_text(value: Any) -> str:
    """A setting as the right side of a ``NAME=VALUE`` word, which ``parse_overrides`` reads.

    Example:
        >>> override_text((1, 4, 8)), override_text(True), override_text("0011")
        ('1,4,8', 'true', '0011')
    """
    if isinstance(value, tuple | list):
        return ",".join(map(override_text, value))
    return str(value).lower() if isinstance(value, bool | None) else str(value)


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
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*")
_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?\s*%?\s*", re.IGNORECASE)


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
    """A size limit in bytes, or ``None`` for none."""
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
    """A smallest saving as a fraction (float) or as bytes (int)."""
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
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError(f"{name} is larger than 2**64, which no size or number is")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}, but must be a finite number of at least 0")


def _check_saving(name: str, asked: Any) -> None:
    if isinstance(asked, str):
        _saving(asked)
    elif asked is not None:
        _check_fraction(asked)


def _check_latency(name: str, asked: Any) -> None:
    if asked is not None:
        _time(asked)


def _check_batch(name: str, asked: Any) -> None:
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ValueError(f"{name} is {asked}, but must be a whole number of at least 1")


def _check_runtime(name: str, asked: Any) -> None:
    known = get_args(Runtime)
    if asked not in known:
        raise ValueError(f"unknown {name} {asked!r}; known: {', '.join(known)}")


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "max_accuracy_drop": _check_number,
    "min_memory_saving": _check_saving,
    "max_parameter_memory": _bytes_of,
    "max_latency": _check_latency,
    "latency_batch": _check_batch,
    "latency_runtime": _check_runtime,
    "max_membrane": _bytes_of,
}

"""What is asked of a pruning run: one typed recipe is the flags, their help and recipe.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "DATA",
    "PRESETS",
    "Limits",
    "Method",
    "PruneRecipe",
    "RunOptions",
    "Selection",
    "describe",
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


# The same values as primesvt.settings.PRESETS has for these fields; here nothing heavy is imported.
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

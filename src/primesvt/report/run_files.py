"""Read the files of a finished run; fields that an older version did not write are absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required

from jinja2 import TemplateError
from pydantic import Field
from typing_extensions import TypedDict

from primesvt._files import JsonlLog, parse_json, read_json, read_yaml, validated

__all__ = ["RunFiles", "flat", "read_run", "told_as_damage"]

PROBES, TUNED = "sensitivity.jsonl", "finetuned/record.json"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The content of a run folder.

    Attributes:
        path: the folder, as it was named.
        recipe, plan, metrics: what the three files hold.
        probes: the lines of ``sensitivity.jsonl``, in order; empty where the file is not there.
        tuned: the record of the fine-tuning, where there was one.
    """

    path: Path
    recipe: Mapping[str, Any] = field(repr=False)
    plan: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)
    probes: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    tuned: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def images(self) -> bool:
        """Whether the run was judged by accuracy on images, and not by a user's ``score``."""
        return self.metrics["before"].get("selection") is not None

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The cuts of the plan, in order."""
        return list(self.plan["steps"])

    @property
    def model(self) -> str:
        """The name of the pruned model; a module given in Python has none."""
        return str(self.recipe.get("model") or "a model given in Python")

    @property
    def data(self) -> str:
        """The name of the data that accuracy was measured on."""
        return str(self.recipe.get("data") or "data given in Python")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting of the recipe by its name without the section."""
        return {name.rpartition(".")[2]: value for name, value in flat(self.recipe)}

    @property
    def reference(self) -> Mapping[str, Any]:
        """The line of the unpruned network among the probes; empty where there is none."""
        return next((row for row in self.probes if row["kind"] == "reference"), {})

    @cached_property
    def groups(self) -> list[str]:
        """Every channel group that was probed alone or cut, in the order in which they came up."""
        alone = [next(iter(row["cuts"])) for row in self.probes if len(row.get("cuts", ())) == 1]
        return list(dict.fromkeys([*alone, *(step["group"] for step in self.steps)]))


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder.

    Raises ``ValueError`` where it holds no finished run, or a file in it is damaged.
    """
    path = Path(folder)
    recipe = _read(path / "recipe.yaml", read_yaml, dict[str, Any])
    plan = _read(path / "plan.json", read_json, _Plan)
    metrics = _read(path / "metrics.json", read_json, _Metrics)
    tuned = _read(path / TUNED, read_json, _Tuned) if (path / TUNED).exists() else None
    probes = tuple(_lines(path / PROBES)) if (path / PROBES).exists() else ()
    return RunFiles(
        path=path, recipe=recipe, plan=plan, metrics=metrics, probes=probes, tuned=tuned
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and their values.

    Example:
        >>> list(flat({"model": "m", "limits": {"max_accuracy_drop": 2}}))
        [('model', 'm'), ('limits.max_accuracy_drop', 2)]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextmanager
def told_as_damage(*folders: str | Path) -> Iterator[None]:
    """Turn an odd value that no schema has refused into one ``ValueError`` that names the folders.

    A page is made from nothing but a run's files, so what goes wrong in it is in them.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, TemplateError) as error:
        named = ", ".join(map(str, folders))
        raise ValueError(
            f"a file of {named} holds something odd ({type(error).__name__}: {error}); "
            "make the run again"
        ) from error


def _read(path: Path, read: Any, kind: Any) -> Any:
    try:
        content = read(path)
        validated(kind, content)
        return content
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{path.parent} holds no finished run: {path.name} is missing; give the folder of a "
            "run that has ended"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; make the run again") from error


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The probes; a last line that a kill cut short is no probe."""
    for number, line in JsonlLog(path, read_only=True).lines():
        try:
            row = parse_json(line)
            kind = validated(_Kind, row)["kind"]
            validated(_ROWS.get(kind, _Kind), row)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is no probe: {error}; delete the line, or the run folder"
            ) from error
        yield row


# What pages read. Older versions wrote less, so few fields are required.

_Count = Annotated[int, Field(ge=0)]
_Width = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class _Score(TypedDict):
    accuracy: float
    low: float
    high: float
    images: _Count


class _Module(TypedDict, total=False):
    module: Required[str]
    firing_rate: float | None


class _Operations(TypedDict, total=False):
    samples: _Count
    firing_rate: float | None
    modules: list[_Module]


class _Latency(TypedDict):
    batch: _Count
    milliseconds: float
    low: float
    high: float
    runs: _Count


class _Costs(TypedDict, total=False):
    parameters: Required[_Count]
    parameter_bytes: Required[Annotated[int, Field(ge=1)]]
    buffer_bytes: _Count
    membrane_bytes_per_sample: _Count | None  # of neurons that are not known
    peak_activation_bytes_per_sample: _Count
    file_bytes: _Count | None
    selection: _Score | None
    test: _Score | None
    score: float | None
    operations: _Operations | None
    energy: dict[str, float | None] | None
    latency: list[_Latency]


class _Confirmed(TypedDict):
    drop: float
    bound: float
    images: _Count


class _Lossless(TypedDict):
    share: float


class _Metrics(TypedDict, total=False):
    met: Required[bool]
    verdict: Required[str]
    bounded_by: str
    saving: Required[float]
    required_saving: float | None
    drop: float
    bound: float | None
    limits: dict[str, float | int | str | bool | None]
    before: Required[_Costs]
    after: Required[_Costs]
    data: Required[str]
    selection_from_train: bool
    notes: list[str]
    confirmation: _Confirmed | None
    lossless: _Lossless | None
    others: list[dict[str, Any]] | None


class _Step(TypedDict, total=False):
    group: Required[str]
    rate: Required[float]
    before: Required[_Width]
    after: Required[_Width]
    accuracy: Required[float | None]
    saving: Required[float]
    recovery: str


class _Plan(TypedDict, total=False):
    config: dict[str, Any] | None
    inputs: list[dict[str, Any]]
    steps: Required[list[_Step]]


class _Tuned(TypedDict, total=False):
    unpruned: dict[str, _Score | None] | None
    before: dict[str, _Score | None] | None
    selection: _Score | None
    test: _Score | None
    loss: list[float] | None
    selection_accuracy: list[float] | None
    kept_epoch: int | None
    recipe: dict[str, Any] | None
    notes: list[str] | None


class _Kind(TypedDict):
    kind: str


class _Reference(TypedDict):
    accuracy: float
    context: NotRequired[dict[str, Any]]


class _Probe(TypedDict):
    cuts: dict[str, _Count]
    accuracy: float
    saving: float
    samples: NotRequired[int | None]
    rejected: NotRequired[float | None]


class _Distance(TypedDict):
    cuts: dict[str, _Count]
    distance: float


_ROWS: Mapping[str, Any] = {
    "reference": _Reference,
    "layer": _Probe,
    "walk": _Probe,
    "distance": _Distance,
}

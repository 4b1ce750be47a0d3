"""Records of trainings and fine-tunings: how weights were made, and their accuracy."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from primesvt._files import parse_json, read_json, validated
from primesvt.evaluation.confidence import Accuracy
from primesvt.models import list_models, model_entry
from primesvt.training.config import TrainRecipe

__all__ = [
    "FinetuneRecord",
    "FinetuneResult",
    "SetAccuracies",
    "TrainProgress",
    "TrainRecord",
    "recorded_recipe",
    "shared_note",
    "versions",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetAccuracies:
    """Top-1 of one network on both sets."""

    selection: Accuracy
    test: Accuracy | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecord:
    """How a pruned network was fine-tuned, and the accuracies; written as ``record.json``.

    Attributes:
        command: the command line, where there was one.
        run: the run folder, where there is one.
        recipe: what was asked, fully resolved.
        context: what else the result depends on: digests of both networks and of the selection set,
            images and batches, the kind of device and its precision.
        data: the sets, in one line.
        data_spec: name or path of data that stood in place of the run's.
        versions: of Python and the packages that compute.
        processes: how many shared every batch.
        parameters: of the pruned network.
        seconds: of training and measuring, over all starts.
        kept_epoch: 0 where the weights before fine-tuning are the best.
        loss: mean of each epoch.
        selection_accuracy: before fine-tuning, then after each epoch.
        unpruned, before: the teacher, and the pruned network before fine-tuning.
        selection, test: the weights kept.
        notes: what a reader must know beside the figures.
    """

    format: int = 1
    command: str
    run: str | None
    recipe: Mapping[str, Any]
    context: Mapping[str, Any]
    data: str
    data_spec: str | None = None
    versions: Mapping[str, str]
    processes: int
    parameters: int
    seconds: float
    kept_epoch: int
    loss: tuple[float, ...]
    selection_accuracy: tuple[float, ...]
    unpruned: SetAccuracies | None
    before: SetAccuracies
    selection: Accuracy
    test: Accuracy | None
    notes: tuple[str, ...] = ()

    @property
    def after(self) -> SetAccuracies:
        """Accuracies of the weights that were kept."""
        return SetAccuracies(selection=self.selection, test=self.test)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FinetuneRecord:
        """Read what ``to_dict`` made; ``ValueError`` naming the fields of anything else."""
        return validated(cls, content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The fine-tuned network, in evaluation mode, and its record."""

    model: nn.Module
    record: FinetuneRecord


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a training depends on."""
    packages = ("primesvt", "torch", "spikingjelly", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    """The version of a package; one on the path that was never installed has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def recorded_recipe(source: str | Path) -> TrainRecipe | None:
    """The recipe that a model was trained with, where its record lies beside it.

    Args:
        source: a registry name with weights in the package, or a folder that ``train`` has written
            (or the model folder in it). Anything else has no record here.

    Example:
        >>> recorded_recipe("sdt_v2_digits").epochs, recorded_recipe("sdt_v2_15m")
        (70, None)
    """
    for place in _records(source):
        try:
            if isinstance(place, Path):
                content = read_json(place)
            else:  # in the package
                content = parse_json(place.read_text(encoding="utf-8"))
            return TrainRecipe.model_validate(content["recipe"])
        except (OSError, ValueError, KeyError, TypeError):  # of something else, or not there
            continue
    return None


def _records(source: str | Path) -> Iterator[Any]:
    """The files in which the record of a model's training may be."""
    if str(source) in list_models():
        weights = model_entry(str(source)).weights
        if weights is not None:
            yield files("primesvt").joinpath("weights", str(Path(weights).with_suffix(".json")))
        return
    folder = Path(source)
    if folder.is_dir():
        yield folder / "record.json"
        if folder.name == "model":
            yield folder.parent / "record.json"


def shared_note(processes: int) -> tuple[str, ...]:
    """A note on batch norms where several processes shared every batch; else empty.

    Example:
        >>> shared_note(1), len(shared_note(2))
        ((), 1)
    """
    if processes == 1:
        return ()
    return (f"{processes} processes shared every batch; batch norms saw one share each.",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """How far a training has come that is not finished; written as ``progress.json``.

    ``loss`` and ``selection_accuracy`` have one value per finished epoch; ``seconds`` are those of
    all starts, and ``images_per_second`` those of the last epoch, without its evaluation.
    """

    recipe: Mapping[str, Any]
    data: str
    versions: Mapping[str, str]
    epochs_done: int
    epochs: int
    seconds: float
    images_per_second: float
    loss: tuple[float, ...]
    selection_accuracy: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """How a checkpoint was made, and how good it is; written beside it as ``record.json``.

    ``data_config`` says how images were prepared. ``kept_epoch`` counts from 1; ``loss`` and
    ``selection_accuracy`` have one value per epoch. ``seconds`` are those of all starts.
    ``context``: what the weights depend on beside the recipe. ``notes``: what the scores depend on
    beside.
    """

    format: int = 1
    command: str
    recipe: Mapping[str, Any]
    data: str
    data_config: Mapping[str, Any]
    held_out_seed: int
    versions: Mapping[str, str]
    parameters: int
    seconds: float
    kept_epoch: int
    selection: Accuracy
    test: Accuracy | None
    loss: tuple[float, ...]
    selection_accuracy: tuple[float, ...]
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainRecord:
        """Read what ``to_dict`` gave; ``ValueError`` naming the fields of anything else."""
        return validated(cls, content)

"""Open models by name, file or folder, and find the data that belong to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from primesvt._files import read_json, read_yaml
from primesvt._guard import check_counts
from primesvt.checkpoint.folder import load as load_folder
from primesvt.checkpoint.folder import model_folder
from primesvt.data import Splits, check_channels, check_classes, load_data
from primesvt.data.config import DIGITS
from primesvt.models import (
    CheckpointReport,
    DataConfig,
    Provenance,
    SpikingViT,
    create_model,
    from_official,
    list_models,
    model_entry,
)
from primesvt.models.nearest import agrees
from primesvt.models.official.read import SUFFIXES, KeyMap, StateFile, read_state_file
from primesvt.models.official.recognise import check_names, guesses
from primesvt.models.registry import nearest_data, provenance_of

__all__ = ["Data", "OpenedModel", "OwnData", "load", "open_model", "own_data", "splits_for"]


def load(
    path: str | Path,
    *,
    into: nn.Module | None = None,
    family: str | None = None,
    container: str | None = None,
    key_map: KeyMap | str | Path | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Any:
    """Load a model in evaluation mode: an official checkpoint, or a folder that PrimeSVT wrote.

    Family and sizes of an official checkpoint (``.pth``, ``.pth.tar``, ``.pt``, ``.bin``,
    ``.safetensors``) are inferred from its tensors; what leaves no trace there is taken from the
    nearest published variant, printed on stderr, and can be given by name. The report is kept as
    ``model.loaded``. No pickled code is run.

    Args:
        path: a checkpoint file, a run folder, or the model folder in it or its file.
        into: for a folder with a module of your own: a fresh, unpruned instance, which is cut as
            the plan says, filled and returned.
        family: the family of the checkpoint, where its tensors should not decide.
        container: the key that holds the weights, for a file that has several sets of them.
        key_map: official names for tensors that have others, or a YAML or JSON file of them, such
            as ``{"layers.*.fc1.*": "block.*.mlp.fc1_conv.*", "aux.*": None}``; ``None`` leaves
            them out.
        quiet: print nothing.
        overrides: settings such as ``time_steps``, ``num_heads``, ``pooling_stat``, ``dvs_mode``,
            ``spike_mode``, ``img_size``, ``group_size``, ``spike_levels``, ``tau``; a saved model
            keeps all but its ``time_steps``.

    Raises:
        TypeError: an override with an unknown name.
        ValueError: a file that is damaged, holds other Python objects or fits no family, or an
            override that cannot be.

    Example:
        >>> import tempfile, torch
        >>> from primesvt.models import create_model, to_official
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "checkpoint-3.pth"
        ...     torch.save({"model": to_official(create_model("sdt_v2_digits"))}, file)
        ...     model = load(file, quiet=True, time_steps=1)
        >>> model.loaded.nearest, model.time_steps
        ('sdt_v2_digits', 1)
    """
    check_names(overrides)
    folder = model_folder(path)
    if folder is not None:
        if container is not None or key_map is not None:
            raise ValueError(
                f"container= and key_map= are for checkpoint files; {path} was written by PrimeSVT"
            )
        return _saved(folder, into, family, overrides)
    if into is not None:
        raise ValueError(f"into= is for folders that PrimeSVT wrote, and {path} is none")
    path = Path(path)
    if not path.exists() and str(path) in list_models():
        raise ValueError(f"{path} is a registered name, no file: use primesvt.create_model")
    file = read_state_file(path, container=container, key_map=key_map)
    model = _official(path, file, family, overrides)
    if not quiet and model.loaded is not None:
        lines = list(model.loaded.lines())
        if guesses(model.loaded):
            lines.append("data tell: primesvt.find_settings(model, data) tries what was assumed")
        sys.stderr.write("\n  ".join(lines) + "\n")
    return model


def _official(
    path: Path, file: StateFile, family: str | None, overrides: Mapping[str, Any]
) -> SpikingViT:
    try:
        model = from_official(file.state, family=family, **overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if model.loaded is not None:
        notes = (*file.notes, *model.loaded.notes)
        model.loaded = replace(model.loaded, source=str(path), notes=notes)
    return model.eval()


def _saved(
    folder: Path, into: nn.Module | None, family: str | None, overrides: Mapping[str, Any]
) -> Any:
    model = load_folder(folder, into=into)
    if not overrides and family is None:
        return model
    if not isinstance(model, SpikingViT):
        raise ValueError(f"{folder} holds a model of your own; it has no settings to override")
    own = {**model.config.to_dict(), "time_steps": model.time_steps}
    for name, value in {"family": own["family"] if family is None else family, **overrides}.items():
        if name != "time_steps" and not (name in own and agrees(own[name], value)):
            raise ValueError(
                f"{name}={value!r} was given, but the model saved in {folder} has "
                f"{name}={own.get(name)!r}; load the original checkpoint with it instead"
            )
    steps = overrides.get("time_steps", model.time_steps)
    model.time_steps = replace(model.config, time_steps=steps).time_steps
    return model


Data = Splits | Dataset[Any] | DataLoader[Any] | Mapping[str, Any] | str | Path


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that was opened by name or path, with its data config and class count."""

    model: SpikingViT

    @property
    def data(self) -> DataConfig:
        """How the model's input images are prepared; ``ValueError`` if that is not known."""
        return provenance_of(self.model).data

    @property
    def held_out(self) -> bool:
        """Whether ``primesvt train`` made the model, and so held out its selection images."""
        return provenance_of(self.model).held_out

    @property
    def loaded(self) -> CheckpointReport | None:
        """The report on an official checkpoint's settings; ``None`` for other models."""
        return self.model.loaded

    @property
    def num_classes(self) -> int:
        """Number of classes that the model predicts."""
        return self.model.config.num_classes

    def example(self) -> Tensor:
        """Two random inputs of the size that the model reads, the same at every call.

        Images ``[2, C, H, W]``, or event frames ``[2, T, C, H, W]``.
        """
        config = self.model.config
        data = (self.model.provenance or Provenance(data=nearest_data(config))).data
        steps = (self.model.time_steps,) if data.events else ()
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, *steps, config.in_channels, *data.input_size[1:], generator=generator)


def open_model(
    source: str | Path,
    *,
    time_steps: int | None = None,
    pretrained: bool = True,
    family: str | None = None,
    container: str | None = None,
    key_map: KeyMap | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> OpenedModel:
    """Open a registry name, an official checkpoint file, or a folder that PrimeSVT wrote.

    ``family``, ``container``, ``key_map`` and ``overrides`` are those of ``primesvt.load``.
    ``pretrained=False`` takes fresh weights where the package has none for a name, which is enough
    to look at a network's structure. Raises ``ValueError`` in one line for anything unusable.

    Example:
        >>> open_model("sdt_v2_digits", pretrained=False).num_classes
        10
    """
    check_counts(time_steps=time_steps)
    settings = dict(overrides or {})
    with _mistakes_of_a_person():
        check_names(settings)
    if time_steps is not None and settings.setdefault("time_steps", time_steps) != time_steps:
        raise ValueError(
            f"time_steps is given twice, as {time_steps} and as {settings['time_steps']}"
        )
    path = Path(source)
    if str(path) not in list_models() and (path.exists() or path.suffix in SUFFIXES):
        reading: dict[str, Any] = {"container": container, "key_map": key_map}
        model = load(path, family=family, quiet=True, **reading, **settings)
    else:
        if container is not None or key_map is not None:
            raise ValueError(
                f"--container and --key-map are for checkpoint files, and {path} is a name of the"
                " registry; leave them out"
            )
        entry = model_entry(str(path))
        if family not in (None, entry.family):
            raise ValueError(f"{entry.name} is of the family {entry.family}, not {family}")
        bundled = entry.weights is not None
        with _mistakes_of_a_person():
            model = create_model(entry.name, pretrained=pretrained or bundled, **settings)
    if not isinstance(model, SpikingViT):
        raise ValueError(f"{source} holds a model of your own; use primesvt.prune in Python for it")
    return OpenedModel(model=model.eval())


@contextmanager
def _mistakes_of_a_person() -> Iterator[None]:
    """Turn ``TypeError`` of an unknown setting into ``ValueError``, where a user typed it."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The data that a model was trained, pruned or fine-tuned on, and how they were split.

    Attributes:
        spec: as it was given; a relative path counts from the working directory.
        told: what says so: a file, or a name of the registry.
        seed: of the split.
        selection_from_train: choices were made on training images.
    """

    spec: str
    told: str
    seed: int = 0
    selection_from_train: bool = False

    def found(self) -> str:
        """The name or path of the data; ``ValueError`` where they are not there any more."""
        place = Path(self.spec)
        _, named, folder = self.spec.partition(":")
        if self.spec == "digits" or place.exists() or (named and Path(folder).exists()):
            return self.spec
        raise ValueError(
            f"the data of this model are not there any more: {self.spec!r}, as {self.told} says"
            f" (a relative path counts from {Path.cwd()}); say where they are now with --data (in"
            " Python: data=)"
        )


def own_data(source: str | Path | nn.Module) -> OwnData | None:
    """Find the data that a model was made with, from the files beside it; ``None`` if unknown.

    The recipe of a run, the record of a training, and the run that a fine-tuned model comes from.
    Models of the registry that read digits have the bundled digits.

    Args:
        source: what ``open_model`` takes, or a model, of which only the digits can be known.

    Example:
        >>> own_data("sdt_v2_digits").spec, own_data("sdt_v2_15m")
        ('digits', None)
    """
    if isinstance(source, nn.Module):
        made = source.provenance if isinstance(source, SpikingViT) and not source.loaded else None
        return OwnData(spec="digits", told="the model") if made and made.data == DIGITS else None
    path = Path(source)
    if str(source) in list_models() or not path.exists():
        named = str(source) in list_models() and model_entry(str(source)).data == DIGITS
        return OwnData(spec="digits", told=str(source)) if named else None
    folder = model_folder(path)
    for home in () if folder is None else _homes(folder):
        found = _of_recipe(home / "recipe.yaml") or _of_record(home / "record.json")
        if found is not None:
            return found
    return None if folder is None else _of_config(folder / "config.json")


def _homes(folder: Path) -> Iterator[Path]:
    """The folders whose recipe or record may describe a model: its own and those above it."""
    folder = folder.absolute()
    yield folder
    if folder.name == "model":
        folder = folder.parent
        yield folder
    if folder.name == "finetuned":
        yield folder.parent
    if folder.parent.name == "export":
        yield folder.parent.parent


def _of_recipe(path: Path) -> OwnData | None:
    """The data named in a run's recipe; ``None`` where it names none."""
    try:
        content = read_yaml(path)
        # A run in Python has its seed at the top; that of a training draws no sets.
        run = content.get("run", {} if "epochs" in content else content)
        if not isinstance(content["data"], str):
            return None
        return OwnData(
            spec=content["data"],
            told=_short(path),
            seed=int(run.get("seed", 0)),
            selection_from_train=bool(run.get("selection_from_train", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # of something else, or not there


def _of_record(path: Path) -> OwnData | None:
    """The data named in the record of a training or fine-tuning, or in the run it refers to."""
    try:
        content = read_json(path)
        recipe, run, told = content["recipe"], content.get("run"), _short(path)
        if isinstance(recipe.get("data"), str):
            return OwnData(spec=recipe["data"], told=told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # of something else, or not there
    before = None
    if isinstance(run, str) and Path(run, "recipe.yaml").is_file():
        before = _of_recipe(Path(run, "recipe.yaml"))
    spec = content.get("data_spec")
    if not isinstance(spec, str):
        return before
    return replace(before or OwnData(spec=spec, told=told), spec=spec, told=told)


def _of_config(path: Path) -> OwnData | None:
    """The digits, for a saved model whose images are prepared as those of the digits models."""
    try:
        made = read_json(path)["provenance"]
        digits = Provenance.from_dict(made).data == DIGITS
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return OwnData(spec="digits", told=_short(path)) if digits else None


def _short(path: Path) -> str:
    """A path relative to the working directory, where it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def splits_for(
    model: nn.Module,
    data: Data | None = None,
    *,
    own: OwnData | None = None,
    seed: int | None = None,
    selection_from_train: bool = False,
) -> Splits:
    """Load and split data, prepared for a model's input; ``ValueError`` where they do not fit it.

    Args:
        model: of the registry or of a user; what fits the latter is not known.
        data: as ``primesvt.prune`` takes them.
        own: the model's own data, which stand in where ``data`` are not given, and whose seed where
            ``seed`` is not.
        seed: of the split.
        selection_from_train: allow choices on training images.

    Raises:
        ValueError: no data, or data that are not there or do not fit.

    Example:
        >>> model = create_model("sdt_v2_digits")
        >>> splits_for(model, own=own_data("sdt_v2_digits")).name
        'digits'
    """
    if data is None and own is None:
        raise ValueError(
            "nothing says which data this model belongs to; give them with --data, such as --data"
            " FOLDER (in Python: data=)"
        )
    if data is None:
        assert own is not None
        data = own.found()
    known: dict[str, Any] = {}
    if isinstance(model, SpikingViT) and isinstance(data, str | Path):
        made = provenance_of(model)
        known = {"data_config": made.data, "held_out": made.held_out}
        known["time_steps"] = model.time_steps
    own = own or OwnData(spec=str(data), told="")
    splits = load_data(
        data,
        seed=own.seed if seed is None else seed,
        allow_selection_from_train=selection_from_train or own.selection_from_train,
        **known,
    )
    if isinstance(model, SpikingViT):
        check_classes(splits, model.config.num_classes)
        check_channels(splits, model.config.in_channels)
        if not isinstance(data, str | Path):
            return replace(splits, remarks=(*splits.remarks, *_other_size(model, splits)))
    return splits


def _other_size(model: SpikingViT, splits: Splits) -> tuple[str, ...]:
    """A remark on samples of a Dataset, which nothing resizes, of another size than the model's."""
    if model.provenance is None:
        return ()
    found = tuple(splits.selection[0][0].shape[-2:])
    made = tuple(model.provenance.data.input_size[1:])
    if found == made:
        return ()
    given, wanted = (" x ".join(map(str, size)) for size in (found, made))
    return (f"samples of {given} as they are given, where the model was made for {wanted}",)

"""Find the labelled sets that lie at a path or belong to a data set's name, not yet split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from primesvt.data.config import DataConfig
from primesvt.data.errors import DataError
from primesvt.data.event_folders import EVENT_DATASETS, EventDataset, EventFolders, event_parts
from primesvt.data.frames import FrameFile, FrameSize
from primesvt.data.images import ImageSet, Indices, Preprocess
from primesvt.data.sources import ClassFolders, Labels, ParquetTable, class_names, in_numeric_order
from primesvt.data.splits import Pools

__all__ = ["PART_NAMES", "find_pools"]

PART_NAMES = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}
FRAME_SUFFIXES = (".npz", ".pt")
TRAIN_SHARE = 0.9


def find_pools(
    spec: str | Path, data_config: DataConfig | None, time_steps: int | None = None
) -> Pools:
    """Find the sets at a path, or of ``NAME:FOLDER`` with the name of an event data set.

    Raises ``DataError`` where nothing usable is there.
    """
    path = Path(spec)
    if not path.exists():
        dataset, place = _event_dataset(str(spec))
        return _event_pools(dataset, place, data_config, time_steps)
    if path.is_file() and path.suffix in FRAME_SUFFIXES:
        return _frame_pools(path.name, {"test": FrameFile(path)}, data_config, time_steps)
    if path.is_dir() and not any(path.glob("*.parquet")):
        # A root of SpikingJelly's would pass for class folders.
        if (path / "events_np").is_dir() or any(path.glob("frames_number_*")):
            raise DataError(
                f"{path} looks like a folder of SpikingJelly's; say which data set it is, "
                f"as in dvs128gesture:{path} (known: {', '.join(EVENT_DATASETS)})"
            )
        found = {p: FrameFile(_only(files)) for p, files in _by_part(path, FRAME_SUFFIXES).items()}
        if found:
            return _frame_pools(path.name, found, data_config, time_steps)
    return _image_pools(path, data_config)


def _frame_pools(
    name: str,
    sources: Mapping[str, FrameFile | EventFolders],
    data_config: DataConfig | None,
    time_steps: int | None,
) -> Pools:
    shape, *others = {source.shape for source in sources.values()}
    if others:
        raise DataError(
            f"the parts of {name} have frames {list(shape)} and {list(others[0])}; make them alike"
        )
    fit = FrameSize(shape, data_config, time_steps=time_steps, name=name)
    sets = {part: ImageSet(each, fit, name=f"{name}/{part}") for part, each in sources.items()}
    return Pools.of(name, sets, form=fit.form)


def _event_pools(
    dataset: EventDataset, place: Path, data_config: DataConfig | None, time_steps: int | None
) -> Pools:
    """An event data set; one without a test part of its own gives a tenth of each class to it."""
    folder = dataset.folder(place, time_steps)
    sources = event_parts(folder, dataset, time_steps=time_steps)
    name = f"{dataset.name} {folder.name}"
    if "whole" not in sources:
        return _frame_pools(name, sources, data_config, time_steps)
    pools = _frame_pools(name, {"test": sources["whole"]}, data_config, time_steps)
    assert isinstance(pools.test, ImageSet)
    train, test = _first_and_last(pools.test.labels)
    return dataclasses.replace(
        pools,
        train=pools.test.choose(train, name="train"),
        test=pools.test.choose(test, name="test"),
        form=f"{pools.form}; the last tenth of each class is for the test",
    )


def _first_and_last(labels: Labels) -> tuple[Indices, Indices]:
    """The first nine tenths of each class, and the rest: the split of published training code.

    SpikingJelly's ``split_to_train_test_set(0.9, ..., random_split=False)`` makes the same one.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    ends = [math.ceil(len(each) * TRAIN_SHARE) for each in members]
    pairs = list(zip(members, ends, strict=True))
    train = np.concatenate([each[:end] for each, end in pairs])
    return np.sort(train), np.sort(np.concatenate([each[end:] for each, end in pairs]))


def _event_dataset(spec: str) -> tuple[EventDataset, Path]:
    """The data set and the folder of ``NAME:FOLDER``; ``DataError`` where either is unknown."""
    name, _, folder = spec.partition(":")
    dataset = EVENT_DATASETS.get(name.lower().replace("-", "").replace("_", ""))
    if dataset is None:
        raise DataError(
            f"there is no data set, file or folder {spec!r}; use 'digits', a path, or NAME:FOLDER "
            f"with one of {', '.join(EVENT_DATASETS)}"
        )
    if not folder or not Path(folder).is_dir():
        where = f"there is no folder {folder!r}" if folder else "no folder is given"
        raise DataError(
            f"{where} for {dataset.name}, and nothing is downloaded; say where SpikingJelly keeps "
            f"it, as in {name}:FOLDER (archives: {dataset.origin})"
        )
    return dataset, Path(folder)


def _image_pools(path: Path, data_config: DataConfig | None) -> Pools:
    if data_config is None:
        raise ValueError(
            "images read from files need data_config: "
            "take a model's, as in model_entry('sdt_v2_small').data"
        )
    preprocess = Preprocess(data_config)
    if path.is_file():
        table = ParquetTable([path])
        return Pools(name=path.name, test=ImageSet(table, preprocess, name=path.name))
    tables = {part: ParquetTable(paths) for part, paths in _by_part(path, (".parquet",)).items()}
    sets = {
        part: ImageSet(source, preprocess, name=f"{path.name}/{part}")
        for part, source in (tables or _folders(path)).items()
    }
    return Pools.of(path.name, sets)


def _by_part(path: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files with these suffixes by part; several files of one part are its shards."""
    found: dict[str, list[Path]] = {}
    for file in sorted(each for each in path.iterdir() if each.suffix in suffixes):
        parts = [part for part, names in PART_NAMES.items() if file.stem.split("-")[0] in names]
        if not parts:
            raise DataError(f"cannot tell what {file} is for; name it train, val or test")
        found.setdefault(parts[0], []).append(file)
    return found


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} are the same part; join them into one file")
    return paths[0]


def _folders(path: Path) -> dict[str, ClassFolders]:
    """Class folders by part; a folder without any part is itself one labelled set."""
    roots: dict[str, Path] = {}
    for part, names in PART_NAMES.items():
        here = [path / name for name in names if (path / name).is_dir()]
        if len(here) > 1:
            raise DataError(f"{here[0]} and {here[1]} are the same part; remove one of them")
        if here:
            roots[part] = here[0]
    roots = roots or {"test": path}
    classes = in_numeric_order(class_names(next(iter(roots.values()))))
    return {part: ClassFolders(root, classes=classes) for part, root in roots.items()}

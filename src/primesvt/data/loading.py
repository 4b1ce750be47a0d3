"""``load_data``: the bundled digits, folders, files, or a user's own datasets as one split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from primesvt._guard import check_counts
from primesvt.data.config import DIGITS, DataConfig
from primesvt.data.errors import DataError
from primesvt.data.images import ImageSet, Part, Preprocess, check_images, image_notes
from primesvt.data.locations import PART_NAMES, find_pools
from primesvt.data.sources import ClassFolders, Digits, order_note
from primesvt.data.splits import HELD_OUT_SEED, Pools, Splits, arrange, check_finite, draw

__all__ = ["DIGITS_SELECTION", "DIGITS_TEST", "DataSpec", "load_data"]

DataSpec = str | Path | Dataset[Any] | DataLoader[Any] | Mapping[str, Dataset[Any]] | Splits

DIGITS_SIZE = (1, 8, 8)
DIGITS_TEST = 450
DIGITS_SELECTION = 450


def load_data(
    spec: DataSpec,
    *,
    data_config: DataConfig | None = None,
    time_steps: int | None = None,
    seed: int = 0,
    held_out: bool = False,
    allow_selection_from_train: bool = False,
) -> Splits:
    """Find a data set and split it into calibration, selection, test and train.

    Args:
        spec: ``"digits"``; a folder with ``train/CLASS/*`` and ``val|test/CLASS/*``, or with
            ``train*.parquet`` and ``val|test*.parquet``; event frames as ``.npz`` or ``.pt`` (see
            ``FrameFile``), or a folder with ``train.npz`` and ``val|test.npz``; an event data set
            of SpikingJelly's, as ``"dvs128gesture:FOLDER"``; one file or one folder of class
            folders (a single labelled set that the model never saw); a ``Dataset`` or a
            ``DataLoader`` (its dataset is taken, its order is not); a mapping with any of
            ``train``, ``validation`` and ``test``; or ready ``Splits``, returned as they are.
        data_config: input size, mean, std, crop ratio and interpolation of the model, as its
            registry entry has them. Needed for images read from files; frames are resized to the
            input size, their values stay as they are, and without it so does their size.
        time_steps: the model's own. Frames keep the number they have; it decides which folder of an
            event data set is taken, and into how many frames raw events are counted.
        seed: draws calibration, and selection and test out of one evaluation set.
        held_out: the model was trained by ``primesvt train``, so the images held out there are the
            selection set; see ``arrange``.
        allow_selection_from_train: select on training images and mark it; see ``arrange``.

    The digits have one fixed split, whatever the seed, which every digits model was trained with:
    897 images to train on, 450 to select on, 450 to test on.

    Raises:
        DataError: nothing there, an empty class folder, a sample that cannot be opened (named),
            images or frames of other channels than the model's, images that are all smaller than
            its input (see ``check_images``).

    Example:
        >>> splits = load_data("digits", seed=3)
        >>> len(splits.selection), len(splits.test)
        (450, 450)
    """
    check_counts(seed=seed, time_steps=time_steps)
    if isinstance(spec, Splits):
        return spec
    if isinstance(spec, str) and spec == "digits":
        return _digits(data_config, seed)
    if isinstance(spec, str | Path):
        pools = find_pools(spec, data_config, time_steps)
    elif isinstance(spec, Mapping):
        unknown = sorted(set(spec) - set(PART_NAMES))
        if unknown or not spec:
            raise ValueError(
                f"unknown part {unknown or '(none given)'}; use {', '.join(PART_NAMES)}"
            )
        sets = {part: _own(dataset, part) for part, dataset in spec.items()}
        pools = Pools.of("the given datasets", sets)
    else:
        pools = Pools(name="the given dataset", test=_own(spec, "test"))
    splits = arrange(
        pools, seed=seed, held_out=held_out, allow_selection_from_train=allow_selection_from_train
    )
    parts = (splits.calibration, splits.selection, splits.test)
    headers = set().union(*(part.check() for part in parts if isinstance(part, ImageSet)))
    remarks = _order(splits)
    if data_config is not None:
        check_images(headers, data_config, name=splits.name)
        remarks += image_notes(headers, data_config)
    return dataclasses.replace(splits, remarks=remarks)


def _order(splits: Splits) -> tuple[str, ...]:
    """How numbered class folders were ordered, where there are any."""
    source = getattr(splits.selection, "source", None)
    note = order_note(source.classes or ()) if isinstance(source, ClassFolders) else ""
    return (note,) if note else ()


def _digits(data_config: DataConfig | None, seed: int) -> Splits:
    """The fixed split of the digits; the seed only draws the calibration images."""
    config = DIGITS if data_config is None else data_config
    preprocess = Preprocess(config)
    if config.input_size != DIGITS_SIZE:
        reads = "x".join(map(str, config.input_size))
        raise DataError(
            f"digits are grey images of 8x8 pixels (1x8x8), but the model reads {reads}; "
            "give the data that the model was trained for"
        )
    everything = ImageSet(Digits(), preprocess, name="digits")
    sizes = [DIGITS_TEST, DIGITS_SELECTION]
    test, selection, train = draw(everything, sizes, seed=HELD_OUT_SEED)
    pools = Pools(
        name="digits",
        train=everything.choose(train, name="train"),
        validation=everything.choose(selection, name="selection"),
        test=everything.choose(test, name="test"),
    )
    return arrange(pools, seed=seed)


def _own(spec: Dataset[Any] | DataLoader[Any], name: str) -> ImageSet | Part:
    """Wrap a user's dataset, after a look at its first sample."""
    dataset = spec.dataset if isinstance(spec, DataLoader) else spec
    if isinstance(dataset, ImageSet):
        return dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{type(dataset).__name__} has no length or no random access, so it cannot be split; "
            "give a map-style Dataset"
        )
    if not len(dataset):
        raise DataError(f"the dataset {type(dataset).__name__} is empty")
    sample: object = dataset[0]
    image, label = sample if isinstance(sample, tuple | list) and len(sample) == 2 else (None, None)
    fits = isinstance(image, Tensor) and image.is_floating_point() and image.ndim in (3, 4)
    whole = isinstance(label, int | np.integer) or (
        isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point()
    )
    if not (fits and whole):
        raise DataError(
            f"{type(dataset).__name__} must yield (float tensor [C, H, W] or [T, C, H, W], "
            f"whole-number label), but its first sample is {_kinds(sample)}"
        )
    check_finite(cast(Tensor, image)[None], [f"sample 0 of {type(dataset).__name__}"])
    return Part(dataset, name=name, indices=np.arange(len(dataset)))


def _kinds(sample: object) -> str:
    if not isinstance(sample, tuple | list):
        return type(sample).__name__
    kinds = (
        f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in sample
    )
    return f"({', '.join(kinds)})"

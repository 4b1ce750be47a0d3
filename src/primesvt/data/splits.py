"""Calibration, selection and test: three sets that share no image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from primesvt.data.errors import DataError
from primesvt.data.images import ImageSet, Indices, Part, Sample
from primesvt.data.sources import Labels

__all__ = [
    "Pools",
    "Splits",
    "arrange",
    "check_channels",
    "check_classes",
    "check_finite",
    "check_labels",
    "draw",
    "hold_out",
    "sample_name",
]

Pool = ImageSet | Part

# Not the run's seed: what a trained model held out must stay held out in every later run.
HELD_OUT_SEED = 2606
CALIBRATION_SIZE = 256
SELECTION_SIZE = 5000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The sets of a run; every item is ``([C, H, W] or [T, C, H, W] float32, int label)``.

    ``calibration`` feeds statistics (labels unused), ``selection`` feeds probes and gates, ``test``
    is read once, for the report. ``calibration`` is a part of ``train`` where there is one; no two
    of calibration, selection and test share an image. ``selection_from_train`` marks a selection
    set on which the model may have been trained: drops of accuracy look too small there. ``form``
    says what event frames look like, and is empty for images. ``remarks``: how the samples were
    read where that is not plain, such as the order of numbered classes.
    """

    name: str
    calibration: Dataset[Sample]
    selection: Dataset[Sample]
    test: Dataset[Sample] | None = None
    train: Dataset[Sample] | None = None
    selection_from_train: bool = False
    form: str = ""
    remarks: tuple[str, ...] = ()

    def description(self) -> str:
        """The sizes of all sets in one line.

        Example:
            >>> from primesvt.data import load_data
            >>> print(load_data("digits").description())
            digits: train 897, calibration 256 (from train), selection 450, test 450 images
        """
        sizes = []
        if self.train is not None:
            sizes.append(f"train {_size(self.train):,}")
        origin = "" if self.train is None else " (from train)"
        sizes.append(f"calibration {_size(self.calibration):,}{origin}")
        marked = (
            " (from training images: drops look too small)" if self.selection_from_train else ""
        )
        sizes.append(f"selection {_size(self.selection):,}{marked}")
        sizes.append("no test set" if self.test is None else f"test {_size(self.test):,}")
        head = f"{self.name} ({self.form})" if self.form else self.name
        return "; ".join([f"{head}: {', '.join(sizes)} {self.unit}", *self.remarks])

    @property
    def unit(self) -> str:
        """The noun for one item: ``images``, or ``samples`` where items are event frames."""
        return "samples" if self.form else "images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pools:
    """The sets of a data set before they are split: any of training, validation and test images."""

    name: str
    train: Pool | None = None
    validation: Pool | None = None
    test: Pool | None = None
    form: str = ""

    @classmethod
    def of(cls, name: str, sets: Mapping[str, Pool], *, form: str = "") -> Pools:
        """Make pools from sets named ``train``, ``validation`` and ``test``."""
        train, validation, test = (sets.get(part) for part in ("train", "validation", "test"))
        return cls(name=name, train=train, validation=validation, test=test, form=form)


def arrange(
    pools: Pools, *, seed: int, held_out: bool = False, allow_selection_from_train: bool = False
) -> Splits:
    """Split the sets of a data set into calibration, selection, test and train.

    * Validation and test images: selection is the one, test the other.
    * One labelled evaluation set: split in halves by ``seed``, selection and test. Without training
      images, calibration is taken off it first.
    * ``held_out``: the model was trained by ``primesvt train``, which never shows it the images of
      ``hold_out``: these are the selection set, and the evaluation set stays whole for the test.
    * ``allow_selection_from_train``: the same images, for a model that may have seen them; marked.

    Raises ``DataError`` where only training images exist and their use was not allowed.
    """
    if pools.validation is not None and pools.test is not None:
        return _with_calibration(pools, pools.train, pools.validation, pools.test, seed)
    evaluation = pools.test if pools.validation is None else pools.validation
    if pools.train is not None and (held_out or allow_selection_from_train):
        train, selection = hold_out(pools.train)
        splits = _with_calibration(pools, train, selection, evaluation, seed)
        return dataclasses.replace(splits, selection_from_train=not held_out)
    if evaluation is None:
        raise DataError(
            f"{pools.name} has training images only, and choosing on images that the model was "
            "trained on makes drops look too small; add a val or test part, "
            "or allow it with --selection-from-train"
        )
    return _split_evaluation(pools, evaluation, seed)


def hold_out(train: Pool) -> tuple[Pool, Pool]:
    """Training images without the held-out ones, and the held-out ones (a fifth, at most 5000).

    The choice depends on the data alone, never on a run's seed.
    """
    size = min(SELECTION_SIZE, len(train) // 5)
    chosen, rest = draw(train, [size], seed=HELD_OUT_SEED, least=5)
    return train.choose(rest, name="train"), train.choose(chosen, name="selection")


def draw(pool: Pool, sizes: Sequence[int], *, seed: int, least: int = 1) -> list[Indices]:
    """Indices of disjoint seeded draws of the given sizes, then of all other images, each sorted.

    Draws keep the class shares (to within one image a class) where the labels are listed. A pool of
    fewer than ``least`` images, or than the sizes need, is refused.
    """
    needed = max(least, sum(max(size, 1) for size in sizes))
    if len(pool) < needed:
        raise DataError(
            f"{pool.name} has too few images ({len(pool)}): at least {needed} are needed; add some"
        )
    order = _balanced_order(pool.labels, len(pool), np.random.default_rng(seed))
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes))]


def check_classes(splits: Splits, num_classes: int) -> None:
    """Raise ``DataError`` where the labels do not fit a model that predicts ``num_classes``.

    Sets that state their classes must have the model's class count, a user's own ``Dataset`` that
    lists their names in ``classes`` too. Others only have to keep their listed labels in range;
    labels that are not listed are checked batch by batch, by ``check_labels``.

    Example:
        >>> from primesvt.data import load_data
        >>> check_classes(load_data("digits"), 100)
        Traceback (most recent call last):
            ...
        primesvt.data.errors.DataError: digits has 10 classes, but the model predicts 100; ...
    """
    sets = [part for part in (splits.train, splits.selection, splits.test) if part is not None]
    counts = [part.num_classes or 0 for part in sets if isinstance(part, ImageSet | Part)]
    if any(counts) and max(counts) != num_classes:
        raise DataError(
            f"{splits.name} has {max(counts)} classes, but the model predicts {num_classes}; "
            "give the data set that the model was trained for, or a model with that many classes"
        )
    for part in sets:
        labels = part.labels if isinstance(part, ImageSet | Part) else None
        if labels is not None:
            check_labels(labels, num_classes, name=splits.name)


def check_channels(splits: Splits, channels: int) -> None:
    """Raise ``DataError`` where a first sample has other channels than a model reads.

    Example:
        >>> from primesvt.data import load_data
        >>> check_channels(load_data("digits"), 3)
        Traceback (most recent call last):
            ...
        primesvt.data.errors.DataError: digits has samples of 1 channel ([1, 8, 8]), but the ...
    """
    for part in (splits.calibration, splits.selection):  # the test set is not looked at yet
        sample = part[0][0] if _size(part) else None
        if isinstance(sample, Tensor) and sample.ndim > 2 and sample.shape[-3] != channels:
            has = sample.shape[-3]
            raise DataError(
                f"{splits.name} has samples of {has} channel{'s' * (has != 1)} "
                f"({list(sample.shape)}), but the model reads {channels}; "
                "give the data that the model was trained for"
            )


def check_finite(samples: Tensor, names: Sequence[str]) -> None:
    """Raise ``DataError`` naming the first sample of a batch that holds NaN or infinity.

    Example:
        >>> import torch
        >>> check_finite(torch.tensor([[0.0], [torch.nan]]), ["sample 6", "sample 7"])
        Traceback (most recent call last):
            ...
        primesvt.data.errors.DataError: sample 7 holds NaN or infinity; repair or remove it
    """
    if samples.is_floating_point() and not bool(samples.isfinite().all()):
        bad = samples.flatten(1).isfinite().all(1).logical_not().nonzero()[0].item()
        raise DataError(f"{names[int(bad)]} holds NaN or infinity; repair or remove it")


def sample_name(dataset: Dataset[Any], index: int) -> str:
    """What to call a sample in messages: its number in the set that the user gave.

    Example:
        >>> from primesvt.data import load_data
        >>> sample_name(load_data("digits").test, 0)
        'sample 0 of digits'
    """
    while isinstance(dataset, Subset):
        index, dataset = int(dataset.indices[index]), dataset.dataset
    if isinstance(dataset, ImageSet):
        return f"sample {int(dataset.indices[index])} of {dataset.source.name}"
    if isinstance(dataset, Part):
        return f"sample {int(dataset.indices[index])} of the {dataset.name} data"
    return f"sample {index} of the data"


def check_labels(labels: Labels | Tensor, num_classes: int, *, name: str = "the data") -> None:
    """Raise ``DataError`` naming the first label outside ``0 .. num_classes - 1``.

    Example:
        >>> check_labels(np.array([3, 12]), 10)
        Traceback (most recent call last):
            ...
        primesvt.data.errors.DataError: the data has the label 12, but ... 0 to 9; ...
    """
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise DataError(
            f"{name} has the label {int(outside[0])}, but the model knows 0 to {num_classes - 1}; "
            "give data with the model's classes"
        )


def _split_evaluation(pools: Pools, pool: Pool, seed: int) -> Splits:
    """One labelled set that the model never saw: halves, after calibration where need be."""
    taken = 0 if pools.train is not None else _calibration_size(len(pool))
    sizes = [(len(pool) - taken) // 2] + ([taken] if taken else [])
    chosen, *calibration, rest = draw(pool, sizes, seed=seed, least=len(sizes) + 1)
    selection = pool.choose(chosen, name="selection")
    test = pool.choose(rest, name="test")
    if not calibration:
        return _with_calibration(pools, pools.train, selection, test, seed)
    return Splits(
        name=pools.name,
        form=pools.form,
        calibration=pool.choose(calibration[0], name="calibration"),
        selection=selection,
        test=test,
    )


def _with_calibration(
    pools: Pools, train: Pool | None, selection: Pool, test: Pool | None, seed: int
) -> Splits:
    """Draw the calibration set off the training images, or else off the selection images."""
    origin = selection if train is None else train
    least = 2 if train is None else 1  # one must be left to select on
    chosen, rest = draw(origin, [_calibration_size(len(origin))], seed=seed, least=least)
    return Splits(
        name=pools.name,
        form=pools.form,
        calibration=origin.choose(chosen, name="calibration"),
        selection=selection.choose(rest, name="selection") if train is None else selection,
        test=test,
        train=train,
    )


def _calibration_size(available: int) -> int:
    """Size of a calibration set: at most 256 images, and at most a third of those available."""
    return max(1, min(CALIBRATION_SIZE, available // 3))


def _balanced_order(labels: Labels | None, count: int, rng: np.random.Generator) -> Indices:
    """A random order in which every stretch holds the classes in their overall shares."""
    order = rng.permutation(count)
    if labels is None:
        return order
    position = np.empty(count)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return order[np.argsort(position[order], kind="stable")]


def _size(dataset: Dataset[Sample]) -> int:
    return len(dataset)  # type: ignore[arg-type]

"""Data sets of samples that are decoded, resized, cropped and normalised without randomness."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from primesvt.data.config import DataConfig
from primesvt.data.errors import DataError
from primesvt.data.sources import DEEP, Header, Labels, Source, unit_grey

__all__ = ["ImageSet", "Part", "Preprocess", "check_images", "image_notes"]

Sample = tuple[Tensor, int]
Indices = npt.NDArray[np.int64]


class Preprocess:
    """Turn a PIL image into a float32 tensor ``[C, H, W]`` as a model's data config says.

    The shorter side is resized to the input size over ``crop_ratio``, the centre is cropped, values
    in 0..1 are normalised by ``mean`` and ``std``. An image that already has the input size is left
    as it is when ``crop_ratio`` is 1. Grey images of 16 bits or floats keep their precision.
    """

    def __init__(self, config: DataConfig) -> None:
        self.channels, self.height, self.width = config.input_size
        modes = {1: "L", 3: "RGB"}
        if config.events and self.channels not in modes:
            raise ValueError(
                f"the model reads event frames of {self.channels} channels, and images have 1 or 3;"
                " give frames, as in --data frames.npz or --data dvs128gesture:FOLDER"
            )
        if self.channels not in modes:
            raise ValueError(
                f"images have 1 or 3 channels, but the model wants {self.channels}; "
                "give a Dataset that yields its tensors instead"
            )
        self._mode = modes[self.channels]
        self._crop_ratio = config.crop_ratio
        try:
            self._filter = Image.Resampling[config.interpolation.upper()]
        except KeyError:
            allowed = ", ".join(kind.name.lower() for kind in Image.Resampling)
            raise ValueError(
                f"unknown interpolation {config.interpolation!r}; use one of: {allowed}"
            ) from None
        self._mean = _per_channel(config.mean, self.channels)
        self._std = _per_channel(config.std, self.channels)

    def __call__(self, image: Image.Image) -> Tensor:
        if image.mode in DEEP:  # PIL's own conversion would cut off all values above 255
            deep = np.array(self._crop(unit_grey(image, "given")), dtype=np.float32)
            pixels = torch.from_numpy(deep.clip(0, 1)).expand(self.channels, -1, -1)
            return ((pixels - self._mean) / self._std).contiguous()
        image = self._crop(image if image.mode == self._mode else image.convert(self._mode))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        pixels = pixels.reshape(self.height, self.width, self.channels).permute(2, 0, 1)
        return ((pixels - self._mean) / self._std).contiguous()

    def _crop(self, image: Image.Image) -> Image.Image:
        """Resize so that the crop covers ``crop_ratio`` of it, then take the centre."""
        if image.size == (self.width, self.height) and self._crop_ratio == 1:
            return image
        width, height = self._resized(image.width, image.height)
        left, top = round((width - self.width) / 2), round((height - self.height) / 2)
        resized = image.resize((width, height), self._filter)
        return resized.crop((left, top, left + self.width, top + self.height))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Size before the crop; whole pixels are rounded down as published evaluations do."""
        least_width, least_height = (
            int(side / self._crop_ratio) for side in (self.width, self.height)
        )
        if width * least_height <= height * least_width:
            return least_width, max(least_height, least_width * height // width)
        return max(least_width, least_height * width // height), least_height


GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
PALETTES = frozenset({"P", "PA"})  # grey or not: their headers do not say


def check_images(headers: Collection[Header], config: DataConfig, *, name: str) -> None:
    """Raise ``DataError`` where images differ in colour or size from what a model reads.

    A grey photo among coloured ones is converted, and a photo that is larger than the model's input
    is scaled down and cropped. Refused are sets of grey images alone for a model of three channels,
    of coloured ones alone for a model of one, and of images that are all smaller than its input.

    Example:
        >>> from primesvt.data.config import CIFAR, DIGITS
        >>> check_images({("RGB", (500, 375)), ("L", (20, 30))}, CIFAR, name="photos")
        >>> check_images({("L", (8, 8))}, CIFAR, name="digits")
        Traceback (most recent call last):
            ...
        primesvt.data.errors.DataError: the images of digits are grey, ... 3 channels (RGB); ...
    """
    channels, height, width = config.input_size
    modes = {mode for mode, _ in headers} - PALETTES
    fix = "give the data that the model was trained for, or save them as such images"
    if modes and channels == 3 and modes <= GREY:
        raise DataError(
            f"the images of {name} are grey, but the model reads 3 channels (RGB); {fix}"
        )
    if modes and channels == 1 and not modes & GREY:
        raise DataError(
            f"the images of {name} are coloured, but the model reads 1 channel (grey); {fix}"
        )
    sizes = [size for _, size in headers]
    if sizes and all(each[0] < width and each[1] < height for each in sizes):
        largest = max(sizes)
        raise DataError(
            f"the images of {name} have at most {largest[0]}x{largest[1]} pixels, but the model "
            f"reads {width}x{height}; give the data that the model was trained for, or enlarge "
            "the files if that is how it was trained"
        )


def image_notes(headers: Collection[Header], config: DataConfig) -> tuple[str, ...]:
    """What is done to images that are not as a model reads them, in a few words each.

    Example:
        >>> from primesvt.data.config import DIGITS
        >>> image_notes({("I;16", (28, 28))}, DIGITS)
        ('images of more than 8 bits scaled to 0..1', 'images of 28x28 resized to 8x8')
    """
    _, height, width = config.input_size
    notes = []
    if any(mode in DEEP for mode, _ in headers):
        notes.append("images of more than 8 bits scaled to 0..1")
    sizes = {size for _, size in headers} - {(width, height)}
    if sizes:
        (low, high), other = (min(sizes), max(sizes)), len(sizes) > 1
        those = f"{low[0]}x{low[1]} .. {high[0]}x{high[1]}" if other else f"{low[0]}x{low[1]}"
        notes.append(f"images of {those} resized to {width}x{height}")
    return tuple(notes)


REMEMBERED = 2**28  # bytes of prepared samples that a set keeps


class ImageSet(Dataset[Sample]):
    """A fixed choice of samples from one source, as ``(float32 tensor, label)`` pairs.

    Images are ``[C, H, W]``, event frames ``[T, C, H, W]``. Nothing is random here: augmentation
    belongs to training. The first samples read stay in memory, prepared, up to ``REMEMBERED``
    bytes: a search reads the same ones hundreds of times. Nobody may write into them.

    Example:
        >>> from primesvt.data import load_data
        >>> image, label = load_data("digits").test[0]
        >>> image.shape, 0 <= label < 10
        (torch.Size([1, 8, 8]), True)
    """

    def __init__(
        self,
        source: Source[Any],
        preprocess: Callable[[Any], Tensor],
        *,
        name: str,
        indices: Indices | None = None,
    ) -> None:
        self.source = source
        self.preprocess = preprocess
        self.name = name
        self.indices: Indices = np.arange(len(source.labels)) if indices is None else indices
        self._known: dict[int, Tensor] = {}
        self._taken = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        where = int(self.indices[index])
        prepared = self._known.get(where)
        if prepared is None:
            prepared = self.preprocess(self.source.sample(where))
            size = prepared.untyped_storage().nbytes()
            if self._taken + size <= REMEMBERED:
                self._known[where] = prepared
                self._taken += size
        return prepared, int(self.source.labels[where])

    def once(self) -> Iterator[Sample]:
        """Yield all samples once, without keeping any in memory."""
        for where in map(int, self.indices):
            known = self._known.get(where)
            image = self.preprocess(self.source.sample(where)) if known is None else known
            yield image, int(self.source.labels[where])

    @property
    def labels(self) -> Labels:
        """Labels of the chosen samples, int64 ``[len(self)]``, without decoding any."""
        return self.source.labels[self.indices]

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the source; None where only the labels that occur are known."""
        return self.source.num_classes

    def choose(self, indices: Indices, *, name: str) -> ImageSet:
        """The samples at ``indices`` of this set, as a set of its own."""
        return ImageSet(self.source, self.preprocess, name=name, indices=self.indices[indices])

    def check(self) -> set[Header]:
        """Read every sample's header; ``DataError`` naming the first sample that is unusable.

        Returns the different modes and sizes of the images; none for event frames.
        """
        found = {self.source.check(int(index)) for index in self.indices}
        return {header for header in found if header is not None}


class Part(Dataset[Sample]):
    """A fixed choice of the samples of a user's own ``Dataset``."""

    def __init__(self, dataset: Dataset[Sample], *, name: str, indices: Indices) -> None:
        self.dataset = dataset
        self.name = name
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.dataset[int(self.indices[index])]
        return image, int(label)

    @property
    def labels(self) -> Labels | None:
        """Labels where the dataset lists them (``targets`` or ``labels``), else None."""
        for attribute in ("targets", "labels"):
            listed = getattr(self.dataset, attribute, None)
            if listed is not None:
                return np.asarray(listed).astype(np.int64)[self.indices]
        return None

    @property
    def num_classes(self) -> int | None:
        """Number of class names in the dataset's ``classes`` (as torchvision's have); else None."""
        listed = getattr(self.dataset, "classes", None)
        named = isinstance(listed, list | tuple) and all(isinstance(each, str) for each in listed)
        return len(listed) if named and listed else None

    def choose(self, indices: Indices, *, name: str) -> Part:
        """The samples at ``indices`` of this part, as a part of its own."""
        return Part(self.dataset, name=name, indices=self.indices[indices])


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    if len(values) != channels:
        raise ValueError(f"{len(values)} mean or std values given for {channels} channels")
    return torch.tensor(values, dtype=torch.float32).reshape(channels, 1, 1)

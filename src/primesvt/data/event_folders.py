"""Event-camera data sets in the folders that SpikingJelly makes; nothing is downloaded."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from primesvt.data.errors import DataError
from primesvt.data.frames import Frames, as_tensor, read_arrays
from primesvt.data.sources import Labels, class_names, files_by_class

__all__ = ["EVENT_DATASETS", "EventDataset", "EventFolders", "event_parts", "integrate"]


@dataclass(frozen=True, kw_only=True)
class EventDataset:
    """An event-camera data set by its SpikingJelly name; ``size`` is ``(height, width)``."""

    name: str
    size: tuple[int, int]
    classes: int
    origin: str

    def folder(self, place: Path, time_steps: int | None) -> Path:
        """The folder to read: frames of ``time_steps``, raw events, or the only frames there are.

        ``place`` is SpikingJelly's root, or a folder of frames in it. Raises ``DataError`` where
        nothing is there, where the choice is not plain, or where SpikingJelly was interrupted.
        """
        if _steps(place) is not None:
            return _finished(place)
        frames = sorted(each for each in place.glob("frames_number_*") if _steps(each) is not None)
        fitting = [each for each in frames if _steps(each) == time_steps]
        events = place / "events_np"
        if not fitting and events.is_dir() and time_steps is not None:
            return _finished(events)
        choice = fitting or frames
        if len(choice) > 1:
            names = ", ".join(each.name for each in choice)
            raise DataError(f"{place} has {names}; give one of these folders itself")
        if choice:
            return _finished(choice[0])
        if events.is_dir():
            raise DataError(
                f"{place} holds raw events; say into how many time steps with time_steps="
            )
        raise DataError(
            f"{place} holds neither 'frames_number_16_split_by_number' (or another number) nor "
            f"'events_np'; get the archives of {self.name} from {self.origin} into "
            f"{place / 'download'}, then run once in Python: spikingjelly.datasets."
            f"{self.name}({str(place)!r}, data_type='frame', frames_number=16, split_by='number')"
        )


EVENT_DATASETS: Mapping[str, EventDataset] = {
    each.name.lower(): each
    for each in (
        EventDataset(
            name="CIFAR10DVS",
            size=(128, 128),
            classes=10,
            origin="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        ),
        EventDataset(
            name="DVS128Gesture",
            size=(128, 128),
            classes=11,
            origin="https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8",
        ),
        EventDataset(
            name="NCaltech101",
            size=(180, 240),
            classes=101,
            origin="https://www.garrickorchard.com/datasets/n-caltech101",
        ),
        EventDataset(
            name="NMNIST",
            size=(34, 34),
            classes=10,
            origin="https://www.garrickorchard.com/datasets/n-mnist",
        ),
        EventDataset(
            name="ASLDVS",
            size=(180, 240),
            classes=24,
            origin="the OpenI mirror (openi dataset download OpenI/ASLDVS)",
        ),
    )
}


class EventFolders:
    """One part of an event data set: ``ROOT/CLASS/SAMPLE.npz``, labels as SpikingJelly has them.

    A file holds ``frames`` ``[T, 2, H, W]``, or raw events ``t, x, y, p``, which are counted into
    ``time_steps`` frames when they are read; nothing is written.

    Args:
        root: the folder of class folders.
        dataset: what lies there.
        classes: the class folders, in the order of their labels.
        time_steps: into how many frames raw events are counted.
    """

    def __init__(
        self,
        root: Path,
        dataset: EventDataset,
        *,
        classes: Sequence[str],
        time_steps: int | None = None,
    ) -> None:
        self.name = root.name
        self._size, self._steps = dataset.size, time_steps
        self._files = files_by_class(root, classes, {".npz"})
        self.labels: Labels = np.array([label for _, label in self._files], dtype=np.int64)
        self.classes: tuple[str, ...] | None = tuple(classes)
        self.num_classes: int | None = dataset.classes
        if len(classes) != dataset.classes:
            raise DataError(
                f"{root} has {len(classes)} class folders, but {dataset.name} has "
                f"{dataset.classes} classes; labels would be wrong, so copy all of them"
            )
        steps, channels, height, width = self._read(0).shape
        self.shape: tuple[int, int, int, int] = (steps, channels, height, width)

    def sample(self, index: int) -> Tensor:
        frames = self._read(index)
        if frames.shape != self.shape:
            raise DataError(
                f"{self._files[index][0]} has frames {list(frames.shape)}, but the first sample "
                f"has {list(self.shape)}; make all with one frames_number"
            )
        return as_tensor(frames, str(self._files[index][0]))

    def check(self, index: int) -> None:
        path = self._files[index][0]
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is cut short or no .npz file; make it again")

    def _read(self, index: int) -> Frames:
        path = self._files[index][0]
        arrays = read_arrays(path)
        if "frames" in arrays and arrays["frames"].ndim == 4:
            return arrays["frames"]
        if self._steps is not None and {"t", "x", "y", "p"} <= set(arrays):
            return integrate(arrays, self._steps, self._size, place=str(path))
        held = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise DataError(f"{path} holds {held or 'nothing'}, not frames [T, C, H, W]; make it again")


def integrate(
    events: Mapping[str, Frames], steps: int, size: tuple[int, int], *, place: str
) -> Frames:
    """Count events into ``steps`` frames of equally many events each, ``[T, 2, H, W]``.

    The channel is the polarity; the last frame has the remainder, as with SpikingJelly's
    ``split_by="number"``.

    Example:
        >>> events = {name: np.array([0, 1, 1]) for name in ("t", "x", "y", "p")}
        >>> integrate(events, 2, (2, 2), place="a.npz").sum((1, 2, 3)).tolist()
        [1, 2]
    """
    x, y, p = (np.asarray(events[name]).astype(np.int64) for name in ("x", "y", "p"))
    height, width = size
    if len(x) and not (0 <= x.min() <= x.max() < width and 0 <= y.min() <= y.max() < height):
        raise DataError(f"{place} has events outside of {height}x{width} pixels; make it again")
    each = len(x) // steps
    step = np.minimum(np.arange(len(x)) // each, steps - 1) if each else np.full(len(x), steps - 1)
    cell = ((step * 2 + (p != 0)) * height + y) * width + x
    counts = np.bincount(cell, minlength=steps * 2 * height * width)
    return counts.reshape(steps, 2, height, width)


def event_parts(
    folder: Path, dataset: EventDataset, *, time_steps: int | None
) -> dict[str, EventFolders]:
    """The parts (train, test) of an event data set; one named ``"whole"`` where it is not split."""
    named = {part: folder / part for part in ("train", "test")}
    roots = {part: root for part, root in named.items() if root.is_dir()} or {"whole": folder}
    classes = class_names(next(iter(roots.values())))
    return {
        part: EventFolders(root, dataset, classes=classes, time_steps=time_steps)
        for part, root in roots.items()
    }


def _steps(folder: Path) -> int | None:
    """The number of frames per sample that a folder's name states; ``None`` if it states none."""
    found = re.fullmatch(r"frames_number_(\d+)_split_by_(time|number)", folder.name)
    return int(found[1]) if found and folder.is_dir() else None


def _finished(folder: Path) -> Path:
    marker = folder.with_name(f"{folder.name}.building")
    if marker.exists():
        raise DataError(
            f"SpikingJelly was interrupted while it made {folder}; "
            f"remove it and {marker}, and make it again"
        )
    return folder

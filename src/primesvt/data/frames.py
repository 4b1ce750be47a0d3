"""Files of event frames, read as tensors ``[T, C, H, W]`` and resized to a model's input size."""

from __future__ import annotations

import contextlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from primesvt.data.config import DataConfig
from primesvt.data.errors import DataError
from primesvt.data.sources import Labels, first_line

__all__ = ["FrameFile", "FrameSize", "Frames", "as_tensor", "read_arrays"]


FRAME_KEYS = ("frames", "x", "data", "events")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")


class FrameFile:
    """Frames ``[N, T, C, H, W]`` and labels ``[N]`` of one ``.npz`` or ``.pt`` file.

    A ``.npz`` holds the arrays ``frames`` and ``labels`` (or ``x``, ``data``; ``y``, ``targets``),
    a ``.pt`` a dict of such tensors or a pair of them. Frames are mapped, not read, unless the file
    is compressed.

    Raises:
        DataError: unreadable, other keys, other axes, labels that are no whole numbers or too few.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "frames.npz"
        ...     np.savez(path, frames=np.zeros((3, 5, 2, 8, 8), np.uint8), labels=[0, 1, 0])
        ...     source = FrameFile(path)
        ...     source.sample(2).shape, source.labels.tolist()
        (torch.Size([5, 2, 8, 8]), [0, 1, 0])
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.name = path.name
        frames, labels = (_read_npz if path.suffix == ".npz" else _read_pt)(path)
        self._frames, self.labels = _checked(frames, labels, path)
        self.classes: tuple[str, ...] | None = None
        # A file of some samples need not hold the last class.
        self.num_classes: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(T, C, H, W)`` of every sample."""
        steps, channels, height, width = self._frames.shape[1:]
        return steps, channels, height, width

    def sample(self, index: int) -> Tensor:
        return as_tensor(self._frames[index], f"{self.name}, sample {index}")

    def check(self, index: int) -> None:
        """Do nothing: all samples were checked when the file was opened."""


def read_arrays(path: Path) -> dict[str, Frames]:
    """Read all arrays of a ``.npz`` file; ``DataError`` where it is unreadable."""

    def read() -> dict[str, Frames]:
        with _archive(path) as archive:
            return {name: archive[name] for name in archive.files}

    found: dict[str, Frames] = _opened(path, read)
    return found


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[Any]:
    # Given a path, NumPy leaves a damaged file open.
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one array alone; save arrays by name with numpy.savez")
        with content:
            yield content


def _read_npz(path: Path) -> tuple[Any, Any]:
    def read() -> tuple[Any, Any]:
        with _archive(path) as archive:
            frames = _one_of(FRAME_KEYS, archive.files, "frames", path)
            labels = _one_of(LABEL_KEYS, archive.files, "labels", path)
            return _mapped(path, archive, frames), archive[labels]

    found: tuple[Any, Any] = _opened(path, read)
    return found


def _read_pt(path: Path) -> tuple[Any, Any]:
    def read() -> Any:
        mappable = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable or None)

    content = _opened(path, read)
    if isinstance(content, dict):
        keys = [str(key) for key in content]
        content = [
            content[_one_of(FRAME_KEYS, keys, "frames", path)],
            content[_one_of(LABEL_KEYS, keys, "labels", path)],
        ]
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise DataError(
            f"{path} holds a {type(content).__name__}; save a dict with 'frames' and 'labels', "
            "or the pair (frames, labels)"
        )
    return content[0], content[1]


def _opened(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors and plain values, which is not loaded; "
            "save frames and labels as tensors"
        ) from error
    except Exception as error:  # readers of damaged files raise many kinds
        raise DataError(
            f"cannot read the frames {path}: {first_line(error)}; replace or remove it"
        ) from error


def _one_of(known: Sequence[str], keys: Iterable[str], what: str, path: Path) -> str:
    """The one key that holds the frames, or the labels."""
    keys = list(keys)
    found = [key for key in keys if key.lower() in known]
    if len(found) != 1:
        there = ", ".join(map(repr, keys)) or "nothing"
        count = "more than one array" if found else "no array"
        raise DataError(
            f"{path} has {count} of {what}: it holds {there}; name one of them {what!r} "
            f"(also known: {', '.join(known[1:])})"
        )
    return found[0]


def _mapped(path: Path, archive: Any, name: str) -> Frames:
    """An array of a ``.npz`` file, mapped where it is stored plainly, else read once."""
    member = archive.zip.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        return np.asarray(archive[name])
    with path.open("rb") as file:
        # The local header's own lengths count: they may differ from those of the directory.
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        shape, fortran, dtype = read(file) if read else ((), False, np.dtype(object))
        if dtype.hasobject or 0 in shape or not shape:
            return np.asarray(archive[name])
        order: Any = "F" if fortran else "C"
        return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape, order=order)


def _checked(frames: Any, labels: Any, path: Path) -> tuple[Frames, Labels]:
    frames, labels = _array(frames, path), _array(labels, path)
    shape = list(frames.shape)
    if frames.ndim != 5 or 0 in frames.shape or frames.dtype.kind not in "buif":
        raise DataError(
            f"{path} has frames {frames.dtype} {shape}; they must be numbers with the axes "
            "[samples, time steps, channels, height, width]"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise DataError(
            f"{path} has labels {labels.dtype} {list(labels.shape)}; "
            "they must be one whole number for each sample"
        )
    if len(labels) != len(frames):
        hint = "; do the frames begin with the time axis?" if len(labels) == shape[1] else ""
        raise DataError(
            f"{path} has {len(labels)} labels, but {len(frames)} samples (frames {shape}){hint}; "
            "give one label for each sample"
        )
    return frames, labels.astype(np.int64)


def _array(value: Any, path: Path) -> Frames:
    try:
        return np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds what NumPy cannot: {first_line(error)}; save float32 or uint8"
        ) from error


Frames = npt.NDArray[np.generic]


class FrameSize:
    """Resize event frames ``[T, C, H, W]`` to a model's height and width, without normalisation.

    Shrinking takes the mean over the area of each new pixel, enlarging interpolates linearly.
    ``config`` None leaves every size as it is.

    Args:
        shape: ``(T, C, H, W)`` of every sample.
        config: what the model reads.
        time_steps: the model's own, named where the frames have another number.
        name: of the data, for errors.

    Raises:
        DataError: the frames have other channels than the model reads.

    Example:
        >>> from primesvt.data.config import events
        >>> fit = FrameSize((10, 2, 128, 128), events(2, 64), time_steps=4, name="frames.npz")
        >>> fit.form
        "10 time steps of 2x128x128, not the model's 4; averaged down to 64x64"
        >>> fit(torch.ones(10, 2, 128, 128)).shape
        torch.Size([10, 2, 64, 64])
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        config: DataConfig | None,
        *,
        time_steps: int | None = None,
        name: str,
    ) -> None:
        steps, channels, height, width = shape
        self.form = f"{steps} time steps of {channels}x{height}x{width}"
        if time_steps is not None and time_steps != steps:
            self.form += f", not the model's {time_steps}"
        self._size: tuple[int, int] | None = None
        if config is None:
            return
        if channels != config.input_size[0]:
            raise DataError(
                f"{name} has frames of {channels} channels, but the model reads "
                f"{config.input_size[0]}; give frames or a model with the same channels"
            )
        if (height, width) != config.input_size[1:]:
            self._size = config.input_size[1:]
            self._shrinks = height >= self._size[0] and width >= self._size[1]
            how = "averaged down to" if self._shrinks else "interpolated to"
            self.form += f"; {how} {self._size[0]}x{self._size[1]}"

    def __call__(self, frames: Tensor) -> Tensor:
        if self._size is None:
            return frames
        if self._shrinks:
            return F.interpolate(frames, self._size, mode="area")
        return F.interpolate(frames, self._size, mode="bilinear", align_corners=False)


def as_tensor(frames: Frames, place: str) -> Tensor:
    """A float32 copy of frames; ``DataError`` naming the place of a NaN or an infinity.

    Example:
        >>> as_tensor(np.full((1, 1, 1, 2), 3, dtype=np.uint8), "frames.npz").tolist()
        [[[[3.0, 3.0]]]]
    """
    tensor = torch.from_numpy(np.array(frames, dtype=np.float32))
    if not bool(tensor.isfinite().all()):
        raise DataError(f"the frames of {place} hold NaN or infinity; repair or remove the sample")
    return tensor

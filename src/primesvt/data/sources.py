"""Where labelled images come from: the bundled digits, class folders, parquet tables."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from primesvt._files import check_file
from primesvt.data.errors import DataError

__all__ = [
    "ClassFolders",
    "Digits",
    "Header",
    "ParquetTable",
    "Source",
    "class_names",
    "files_by_class",
    "in_numeric_order",
    "order_note",
    "unit_grey",
]

Labels = npt.NDArray[np.int64]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


Sample_co = TypeVar("Sample_co", covariant=True)
Header = tuple[str, tuple[int, int]]
"""Mode of an image, as PIL names it, and its (width, height) in pixels."""


class Source(Protocol[Sample_co]):
    """Labelled samples, images or event frames, that are decoded one at a time.

    ``classes`` are the class names where the data state them. ``num_classes`` is None where labels
    only bound the class count from below.
    """

    name: str
    labels: Labels
    classes: tuple[str, ...] | None
    num_classes: int | None

    def sample(self, index: int) -> Sample_co:
        """Decode one sample; ``DataError`` naming it where that fails."""
        ...

    def check(self, index: int) -> Header | None:
        """Read one image's header: its mode and size; None for event frames.

        Raises ``DataError`` naming the sample where it is unusable.
        """
        ...


class Digits:
    """The 1797 handwritten digits of scikit-learn: 8x8 pixels, 17 grey levels, 10 classes.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.

    Example:
        >>> digits = Digits()
        >>> len(digits.labels), digits.sample(0).size
        (1797, (8, 8))
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self.name = "digits"
        self.labels: Labels = bunch.target.astype(np.int64)
        self.classes: tuple[str, ...] | None = tuple(str(digit) for digit in range(10))
        self.num_classes: int | None = 10
        self._pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)

    def sample(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def check(self, index: int) -> Header:
        """Mode and size, the same for every digit."""
        return "L", (8, 8)


class ClassFolders:
    """Images in one folder per class, the layout of ImageNet: ``ROOT/CLASS/IMAGE.png``.

    ``classes`` gives the label of each class folder by its position. Hidden files are left alone;
    an empty class folder or a file of another kind raises ``DataError``.
    """

    def __init__(self, root: str | Path, *, classes: Sequence[str]) -> None:
        self.root = Path(root)
        self.name = self.root.name
        self.classes: tuple[str, ...] | None = tuple(classes)
        self.num_classes: int | None = len(classes)
        self._files = files_by_class(self.root, classes, IMAGE_SUFFIXES)
        self.labels: Labels = np.array([label for _, label in self._files], dtype=np.int64)

    def sample(self, index: int) -> Image.Image:
        path = self._files[index][0]
        return decode(str(path), lambda: Image.open(check_file(path)))

    def check(self, index: int) -> Header:
        path = self._files[index][0]
        image = decode(str(path), lambda: Image.open(check_file(path)), header_only=True)
        return image.mode, image.size


class ParquetTable:
    """One or more parquet files with an image column (encoded bytes) and an integer label column.

    The image column holds bytes, or a struct with a field ``bytes`` as Hugging Face writes it.
    The files are mapped, not read, until an image is asked for.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.name = ", ".join(Path(path).name for path in paths)
        try:
            tables = [pq.read_table(path, memory_map=True) for path in paths]
            table = pa.concat_tables(tables)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read the table {self.name}: {first_line(error)}") from error
        image, label = _columns(table.schema, self.name)
        if not table.num_rows or table[label].null_count:
            raise DataError(f"{self.name} has no rows, or rows without a label in {label!r}")
        self._images = table[image]
        self.labels: Labels = table[label].to_numpy().astype(np.int64)
        self.classes: tuple[str, ...] | None = _stated_classes(table.schema.metadata or {}, label)
        named = None if self.classes is None else len(self.classes)
        self.num_classes: int | None = named or int(self.labels.max()) + 1

    def sample(self, index: int) -> Image.Image:
        return decode(self._place(index), lambda: Image.open(self._bytes(index)))

    def check(self, index: int) -> Header:
        opened = self._bytes(index)
        image = decode(self._place(index), lambda: Image.open(opened), header_only=True)
        return image.mode, image.size

    def _bytes(self, index: int) -> io.BytesIO:
        value = self._images[int(index)].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        return io.BytesIO(content or b"")

    def _place(self, index: int) -> str:
        return f"{self.name}, row {index}"


def class_names(root: str | Path) -> tuple[str, ...]:
    """Names of the class folders in ``root``, sorted: their positions are the labels.

    Raises ``DataError`` where there are none, or where files lie beside them.
    """
    entries = [entry for entry in Path(root).iterdir() if not entry.name.startswith(".")]
    files = sorted(entry.name for entry in entries if not entry.is_dir())
    if files or not entries:
        there = f"the file {files[0]!r}" if files else "nothing"
        raise DataError(f"{root} should hold one folder per class, but {there} lies in it")
    return tuple(sorted(entry.name for entry in entries))


def in_numeric_order(names: Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: as numbers, where all are numbers; else as text.

    Example:
        >>> in_numeric_order(["1", "10", "2"]), in_numeric_order(["a1", "a10", "a2"])
        (('1', '2', '10'), ('a1', 'a10', 'a2'))
    """
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def order_note(names: Sequence[str]) -> str:
    """How numbered class folders were ordered; empty where names hold no number that could differ.

    Example:
        >>> order_note(("1", "2", "10"))
        'classes: folders 1 .. 10 in numeric order'
        >>> order_note(("a1", "a10", "a2"))
        'classes: folders a1, a10, a2 in the order of their text'
        >>> order_note(("cat", "dog"))
        ''
    """
    if len(names) > 1 and all(name.isascii() and name.isdigit() for name in names):
        return f"classes: folders {names[0]} .. {names[-1]} in numeric order"

    def natural(name: str) -> list[tuple[bool, int, str]]:
        parts = re.split(r"([0-9]+)", name)
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

    if list(names) == sorted(names, key=natural):
        return ""
    first = ", ".join(names[:3])
    more = ", ..." if len(names) > 3 else ""
    return f"classes: folders {first}{more} in the order of their text"


def files_by_class(
    root: Path, classes: Sequence[str], suffixes: Collection[str]
) -> list[tuple[Path, int]]:
    """Every file of every class folder with its label, both in sorted order.

    Hidden files are left alone. Raises ``DataError`` where the class folders are other ones than
    ``classes``, where one is empty, or where a file has another suffix.
    """
    found, expected = set(class_names(root)), set(classes)
    for problem, names in (
        ("lacks the class folder", sorted(expected - found)),
        ("has a class folder that the training samples lack,", sorted(found - expected)),
    ):
        if names:
            raise DataError(f"{root} {problem} {names[0]!r}; both need the same classes")
    labelled = []
    for label, folder in enumerate(root / name for name in classes):
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if not files:
            raise DataError(f"the class folder {folder} is empty; add samples or remove the folder")
        for path in files:
            if path.suffix.lower() not in suffixes:
                allowed = " ".join(sorted(suffixes))
                raise DataError(
                    f"{path} is none of the files expected here ({allowed}); move it away"
                )
            labelled.append((path, label))
    return labelled


def decode(
    place: str, opener: Callable[[], Image.Image], *, header_only: bool = False
) -> Image.Image:
    """Open and decode an image; ``DataError`` naming it where that fails."""
    try:
        with opener() as image:
            if header_only:
                return image
            image.load()
            return unit_grey(image.copy(), place, sixteen_bit=image.format == "PNG")
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise many kinds
        raise DataError(
            f"cannot read the image {place}: {first_line(error)}; replace or remove it"
        ) from error


SIXTEEN_BIT = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
DEEP = SIXTEEN_BIT | {"I", "F"}
"""Modes whose values do not fit into 8 bits, as PIL names them."""


def unit_grey(image: Image.Image, place: str, *, sixteen_bit: bool = False) -> Image.Image:
    """A grey image of more than 8 bits as floats from 0 to 1; others stay as they are.

    16-bit values are divided by 65,535, floats must lie in 0..1 already. ``DataError`` naming the
    place for values whose scale is not known: other floats, other integers, and 16-bit images that
    use only the lowest 8 bits. ``sixteen_bit``: integers of mode ``I`` are of 16 bits.

    Example:
        >>> deep = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
        >>> np.asarray(unit_grey(deep, "scan.png")).tolist()
        [[0.0, 1.0]]
    """
    if image.mode not in DEEP:
        return image
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"the image {place} holds NaN or infinity; repair or remove it")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if low < 0 or high > 1:
            raise DataError(
                f"the image {place} holds floats from {low:g} to {high:g}, whose scale is not"
                " known; save it with values from 0 to 1, or with 8 or 16 bits"
            )
        return image
    if (image.mode not in SIXTEEN_BIT and not sixteen_bit) or low < 0 or 0 < high < 256:
        raise DataError(
            f"the image {place} holds integers from {low:g} to {high:g} in more than 8 bits, whose"
            " scale is not known; save it with 8 bits, or with 16 bits from 0 to 65,535"
        )
    return Image.fromarray(values / np.float32(65535))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _columns(schema: Any, name: str) -> tuple[str, str]:
    """The image column and the label column of a table, recognised by their types."""
    import pyarrow.types as kinds

    def holds_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    images = [field.name for field in schema if holds_bytes(field.type)]
    labels = [field.name for field in schema if kinds.is_integer(field.type)]
    if "label" in labels:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{name} needs one column of image bytes and one integer column 'label', "
            f"but its columns are: {', '.join(f'{f.name} ({f.type})' for f in schema)}"
        )
    return images[0], labels[0]


def _stated_classes(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Class names that Hugging Face stores beside a table's schema, if it has them."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, json.JSONDecodeError):
        return None
    return tuple(str(name) for name in names)

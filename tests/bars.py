"""Two easy classes, horizontal and vertical bars, as a folder of parquet files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_bars(folder: Path, *, train: int = 80, test: int = 20) -> Path:
    """Labels 0 and 9 in turn, so that a model of ten classes fits; returns the folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        rows = [(encoded_bar(label, rng), label) for label in [0, 9] * (count // 2)]
        images = [{"bytes": image, "path": None} for image, _ in rows]
        table = pa.table({"img": images, "label": [label for _, label in rows]})
        pq.write_table(table, folder / f"{part}.parquet")
    return folder


def encoded_bar(label: int, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
    pixels[(slice(2, 5), slice(None)) if label else (slice(None), slice(2, 5))] = 250
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()

"""Small event frames and a small model that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from primesvt.data import DataError, ImageSet, Splits, load_data
from primesvt.data.config import events
from primesvt.models import Provenance, SpikingViT, create_model

SHAPE = (12, 5, 2, 8, 8)
LABELS = np.arange(12) % 3


def frames(shape: tuple[int, ...] = SHAPE, *, dtype: Any = np.uint8, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)


def written(path: Path, **arrays: Any) -> Path:
    """A ``.npz`` or ``.pt`` file, with the usual frames and labels where none are given."""
    arrays = arrays or {"frames": frames(), "labels": LABELS}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        torch.save({name: torch.as_tensor(value) for name, value in arrays.items()}, path)
    return path


def event_model(*, classes: int = 3, size: int = 8) -> SpikingViT:
    """A small model of event frames, with weights that fire."""
    torch.manual_seed(0)
    model = create_model("sdt_v2_digits", in_channels=2, num_classes=classes, time_steps=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 2.0)
    model.provenance = Provenance(data=events(2, size))
    return model.eval()


def polarities(count: int, *, seed: int = 0) -> tuple[Any, Any]:
    """Frames whose label says where the events are: brighter, darker, or both."""
    labels = np.arange(count) % 3
    shown = (np.random.default_rng(seed).random((count, 4, 2, 8, 8)) < 0.5).astype(np.uint8)
    for sample, label in zip(shown, labels, strict=True):
        if label < 2:
            sample[:, label] = 0
    return shown, labels


def refused(spec: str | Path, **known: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(spec, **known)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_sample(splits: Splits) -> dict[int, tuple[torch.Tensor, int]]:
    """All samples of the three sets by their place in the file."""
    found: dict[int, tuple[torch.Tensor, int]] = {}
    for part in (splits.calibration, splits.selection, splits.test):
        assert isinstance(part, ImageSet)
        assert not set(part.indices.tolist()) & set(found)
        found |= {int(place): part[k] for k, place in enumerate(part.indices)}
    return found

"""A finished run on two easy classes, and the same as networks and sets."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from primesvt.checkpoint.load import load
from primesvt.cli import main
from primesvt.data import Splits, load_data
from primesvt.models import SpikingViT, create_model, model_entry

from ...bars import write_bars

GROUPS = ("*.block3_0.mlp.fc1", "*.block4_0.mlp.fc1")


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("data") / "bars")


@pytest.fixture(scope="session")
def _run(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["prune", "sdt_v2_digits", "--data", str(bars), "--preset", "paper", "--json"]
    words += ["--include", *GROUPS, "--rates", "0.9", "--max-accuracy-drop", "10"]
    assert main([*words, "--batch-size", "16", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(_run: Path, tmp_path: Path) -> Path:
    """A run folder of one's own."""
    return Path(shutil.copytree(_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def _pruned(_run: Path) -> SpikingViT:
    model = load(_run)
    assert isinstance(model, SpikingViT)
    return model


@pytest.fixture
def pruned(_pruned: SpikingViT) -> SpikingViT:
    return copy.deepcopy(_pruned)


@pytest.fixture
def teacher() -> nn.Module:
    return create_model("sdt_v2_digits", pretrained=True).eval()


@pytest.fixture(scope="session")
def splits(bars: Path) -> Splits:
    return load_data(bars, data_config=model_entry("sdt_v2_digits").data, held_out=True)


@pytest.fixture
def short() -> dict[str, Any]:
    """Four steps an epoch; the teacher knows digits, not bars, so labels weigh as much."""
    return {"epochs": 2, "batch_size": 16, "learning_rate": 0.005, "distillation": 0.5}

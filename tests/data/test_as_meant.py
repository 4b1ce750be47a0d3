"""Data are read as they were meant: deep images, numbered classes, values that are no numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from primesvt import Limits, create_model, prune
from primesvt.cli import main
from primesvt.data import DataError, load_data
from primesvt.evaluation.evaluator import outcomes
from primesvt.models import model_entry
from primesvt.training import TrainRecipe, train

from .event_samples import LABELS, frames

CONFIG = model_entry("sdt_v2_digits").data
DIGITS = load_digits()
KINDS = {
    "8 bit": (255, np.uint8, "png"),
    "16 bit": (65535, np.uint16, "png"),
    "16 bit TIFF": (65535, np.uint16, "tif"),
    "floats": (1, np.float32, "tif"),
}


def folder_of(root: Path, kind: str, *, first: int = 0, count: int = 60) -> Path:
    """Digits as class folders, numbered from ``first``."""
    top, dtype, suffix = KINDS[kind]
    for number in range(count):
        place = root / "val" / str(DIGITS.target[number] + first)
        place.mkdir(parents=True, exist_ok=True)
        pixels = DIGITS.images[number] * top / 16
        pixels = pixels if top == 1 else np.rint(pixels)
        Image.fromarray(pixels.astype(dtype)).save(place / f"{number}.{suffix}")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_deep_images_are_the_pictures_that_they_show(kind: str, tmp_path: Path) -> None:
    test = load_data(folder_of(tmp_path / "a", kind), data_config=CONFIG).test
    plain = load_data(folder_of(tmp_path / "b", "8 bit"), data_config=CONFIG).test
    assert test is not None and plain is not None
    for number in range(len(test)):
        torch.testing.assert_close(test[number][0], plain[number][0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        (np.full((8, 8), 300.0, np.float32), "floats from 300 to 300, whose scale is not known"),
        (np.full((8, 8), 7, np.uint16), "integers from 7 to 7 in more than 8 bits"),
        (np.full((8, 8), np.nan, np.float32), "holds NaN or infinity; repair or remove it"),
    ],
)
def test_values_without_a_known_scale_are_refused(values, phrase: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path, "8 bit")
    odd = root / "val" / "0" / "odd.tif"
    Image.fromarray(values).save(odd)
    with pytest.raises(DataError, match=phrase) as caught:
        splits = load_data(root, data_config=CONFIG)
        for part in (splits.test, splits.selection, splits.calibration):
            assert part is not None
            _ = [part[number] for number in range(len(part))]
    assert str(odd) in str(caught.value)


def test_numbered_classes_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    splits = load_data(folder_of(tmp_path, "8 bit", first=1, count=120), data_config=CONFIG)
    assert splits.test is not None
    right = outcomes(create_model("sdt_v2_digits", pretrained=True), splits.test)
    assert right.mean() > 0.9
    assert splits.description().endswith("classes: folders 1 .. 10 in numeric order")


def test_an_accuracy_at_chance_is_warned_of(tmp_path: Path, capsys) -> None:
    torch.manual_seed(1)
    model = create_model("sdt_v2_digits")
    result = prune(
        model,
        data="digits",
        constraints=Limits(max_accuracy_drop=5),
        include=["*.block4_0.mlp.fc1"],
        rates=[0.5],
        gate="point",
        policy="uniform",
        recovery="none",
        verify=False,
    )
    said = " ".join(result.metrics.notes)
    assert "Warning:" in said and "the classes may be in another order" in said
    assert main(["evaluate", "sdt_v2_digits", "--data", "digits"]) == 0
    assert "Warning" not in capsys.readouterr().out


def test_weights_and_samples_that_are_no_numbers_are_refused() -> None:
    model = create_model("sdt_v2_digits", pretrained=True)
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    images[7, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="sample 7 of the data holds NaN or infinity"):
        outcomes(model, TensorDataset(images, labels), batch_size=5)
    with pytest.raises(ValueError, match=r"holds NaN"):
        prune(model, data=TensorDataset(images.fill_(torch.nan), labels))


def test_training_takes_the_channels_that_its_model_is_asked_for(tmp_path: Path) -> None:
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", frames=frames(), labels=LABELS)
    options = {"in_channels": 2, "time_steps": 4}
    recipe = TrainRecipe(
        model="sdt_v2_digits", model_options=options, data=str(tmp_path), epochs=1,
        batch_size=8,
    )  # fmt: skip
    record = train(recipe, out_dir=tmp_path / "out")
    assert record.data_config["input_size"][0] == 2


class OwnNeuron(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0.5).to(x.dtype)


def test_state_of_unknown_neurons_is_not_counted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), OwnNeuron(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(),
        nn.Linear(16, 4),
    ).eval()  # fmt: skip
    images = torch.rand(60, 1, 8, 8)
    data = TensorDataset(images, net(images).argmax(1))
    result = prune(
        net, data=data, constraints=Limits(max_accuracy_drop=80), policy="uniform", rates=[0.5],
        gate="point",
    )  # fmt: skip
    assert result.metrics.before.membrane_bytes_per_sample is None
    with pytest.raises(ValueError, match="max_membrane"):
        prune(net, data=data, constraints=Limits(max_accuracy_drop=80, max_membrane="1kB"))

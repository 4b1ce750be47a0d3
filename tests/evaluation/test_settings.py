"""Settings that tensors do not tell are tried on data, and what was found is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

import primesvt
from primesvt import Limits, find_settings, prune
from primesvt.cli import main
from primesvt.data import load_data
from primesvt.evaluation import settings
from primesvt.evaluation.evaluator import outcomes
from primesvt.evaluation.settings import tried_on
from primesvt.models import build_model, create_model, to_official
from primesvt.training.finetune_source import source_of_model

TRUE = create_model("sdt_v2_digits", pretrained=True).eval()
FEW = {"batch_size": 128}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(to_official(TRUE), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ROUNDS", ((32, 2),))
    monkeypatch.setattr(settings, "USUAL", {**settings.USUAL, "time_steps": (1, 2, 4)})
    monkeypatch.setattr(settings, "SIDES", (4, 8))  # halved once at most


def test_the_settings_of_the_training_are_found(weights: Path) -> None:
    right = primesvt.load(weights, quiet=True)
    wrong = {"strides": (2, 1, 1, 1, 1), "time_steps": 1}
    guessed = build_model(replace(right.config, **wrong))
    guessed.load_state_dict(right.state_dict())
    guessed.loaded = replace(right.loaded, assumed={**right.loaded.assumed, **wrong}, exact=False)
    digits = load_data("digits")
    assert outcomes(guessed.eval(), digits.test).mean() < 0.8
    model = find_settings(guessed, digits, **FEW)
    assert model.config.strides == TRUE.config.strides
    assert model.time_steps == TRUE.time_steps == model.loaded.found["time_steps"]
    assert "Settings were found on" in model.loaded.tried
    assert outcomes(model, digits.test).mean() > 0.95
    assert model.config != guessed.config  # and the one given stays
    assert find_settings(TRUE, digits) is TRUE  # nothing was guessed


def test_the_images_that_settings_were_tried_on_are_left_out() -> None:
    splits = load_data("digits")
    rest, chosen = tried_on(splits, seed=0)
    assert isinstance(rest, Subset) and isinstance(chosen, Subset)
    assert not set(rest.indices) & set(chosen.indices)
    assert len(rest) + len(chosen) == 450 and len(chosen) == 45
    assert tried_on(splits, seed=1)[1].indices != chosen.indices


def test_commands_say_what_was_found(weights: Path, capsys, tmp_path: Path) -> None:
    assert main(["evaluate", str(weights), "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] > 0.95 and found["loaded"]["found"]["time_steps"] == 2
    result = prune(
        primesvt.load(weights, quiet=True), data="digits", constraints=Limits(max_accuracy_drop=9),
        policy="uniform", rates=[0.25], include=["*.block4_0.mlp.fc1"], gate="point", verify=False,
        recovery="none", lossless=False,
    )  # fmt: skip
    assert any("and no other usual value is clearly better" in n for n in result.metrics.notes)
    assert result.metrics.before.test.accuracy > 0.95


def test_whatever_has_data_at_hand_tries_them(weights: Path, capsys, tmp_path: Path) -> None:
    """An export, firing rates, and a teacher."""
    path, said = str(weights), "no other usual value is clearly better"
    out = str(tmp_path / "net.pt2")
    command = ["export", path, "--data", "digits", "--format", "torch-export", "--out", out]
    assert main([*command, "--images", "8"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", path, "--costs", "--data", "digits", "--json"]) == 0
    loaded = json.loads(capsys.readouterr().out)["loaded"]
    assert loaded["found"]["time_steps"] == 2 and said in loaded["tried"]
    source = source_of_model(
        TRUE, teacher=path, data="digits", plan=None, batch_size=None, seed=None
    )
    assert said in source.open_teacher().loaded.tried

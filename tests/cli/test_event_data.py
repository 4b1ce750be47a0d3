"""Event frames on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.event_samples import event_model, polarities, written

from primesvt.checkpoint.folder import save_model

FC1 = "*.block3_0.mlp.fc1"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_evaluate_and_prune(primesvt):
    shown, labels = polarities(30)
    written(Path("frames.npz"), frames=shown, labels=labels)
    save_model(event_model(size=4), "model")
    data = ("--data", "frames.npz")
    whole = primesvt("evaluate", "model", *data, "--batch-size", 4)
    assert whole.code == 0
    assert "test set of 10 samples" in whole.out
    assert "4 time steps of 2x8x8; averaged down to 4x4" in whole.out
    limits = ("--max-accuracy-drop", 25, "--min-memory-saving", 0.01, "--preset", "paper")
    chosen = ("--include", FC1, "--rates", 0.5)
    pruned = primesvt("prune", "model", *data, *limits, *chosen, "--out", "smaller")
    assert pruned.code == 0 and "frames.npz (4 time steps" in pruned.out
    before, after = (
        primesvt("evaluate", name, *data, "--json").json for name in ("model", "smaller")
    )
    assert after["parameters"] < before["parameters"]


def test_inspect_traces_event_frames(primesvt):
    save_model(event_model(), "model")
    found = primesvt("inspect", "model", "--json").json
    assert any(group["prunable"] for group in found["groups"])


def test_images_for_an_event_model_are_refused_in_one_line(primesvt):
    save_model(event_model(), "model")
    finished = primesvt("evaluate", "model", "--data", "digits")
    assert finished.code == 1 and finished.out == ""
    assert "reads event frames of 2 channels" in finished.err


def test_time_steps_of_the_frames_count_and_it_is_said(primesvt):
    shown, labels = polarities(12)
    written(Path("frames.npz"), frames=shown, labels=labels)
    save_model(event_model(), "model")
    finished = primesvt("evaluate", "model", "--data", "frames.npz", "--time-steps", 2)
    assert "4 time steps of 2x8x8, not the model's 2" in finished.out

"""The recipe that a model was trained with is found beside it, or not at all."""

from __future__ import annotations

import json

import pytest

from primesvt.training.record import recorded_recipe


def test_beside_a_trained_model_and_in_the_package(tmp_path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    record = {"recipe": {"epochs": 40, "learning_rate": 0.01}}
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    for source in (tmp_path / "run", tmp_path / "run" / "model", str(tmp_path / "run")):
        found = recorded_recipe(source)
        assert found is not None and found.epochs == 40
    bundled = recorded_recipe("sdt_v2_digits")
    assert bundled is not None and bundled.augmentation.rotate == 10


@pytest.mark.parametrize("text", ["", "[]", '{"recipe": 3}', '{"recipe": {"distillation": 1}}'])
def test_anything_else_is_no_record_of_a_training(tmp_path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    assert recorded_recipe(tmp_path) is None
    assert recorded_recipe(tmp_path / "gone.pth") is None
    assert recorded_recipe("sdt_v2_15m") is None

"""What is not asked for follows the training on record."""

from __future__ import annotations

import pytest

from primesvt.training import Augmentation, TrainRecipe
from primesvt.training.config import FinetuneRecipe

TRAINING = TrainRecipe(
    epochs=35,
    batch_size=48,
    learning_rate=0.03,
    warmup_epochs=5,
    weight_decay=0.01,
    label_smoothing=0.2,
    gradient_clip=None,
    augmentation=Augmentation(flip=True),
    seed=9,
    compile=True,
)


def test_a_tenth_of_the_training() -> None:
    found = FinetuneRecipe.after(TRAINING, {})
    assert (found.epochs, found.learning_rate, found.warmup_epochs) == (3, 0.003, 0.3)
    for name in ("batch_size", "weight_decay", "label_smoothing", "gradient_clip", "augmentation"):
        assert getattr(found, name) == getattr(TRAINING, name)
    assert found.seed == 0 and not found.compile
    assert FinetuneRecipe.after(TrainRecipe(epochs=4), {}).epochs == 1


def test_without_a_record_the_defaults() -> None:
    assert FinetuneRecipe.after(None, {}) == FinetuneRecipe()


def test_what_is_given_stands() -> None:
    given = {"epochs": 8, "augmentation": {"shift": 2}, "gradient_clip": 0.5}
    found = FinetuneRecipe.after(TRAINING, given)
    assert (found.epochs, found.warmup_epochs, found.gradient_clip) == (8, 0.8, 0.5)
    assert found.augmentation == Augmentation(shift=2)
    assert FinetuneRecipe.after(TRAINING, {"warmup_epochs": 0}).warmup_epochs == 0


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"^distillation: 2, .*; epoch: unknown field$"):
        FinetuneRecipe.after(None, {"distillation": 2, "epoch": 3})

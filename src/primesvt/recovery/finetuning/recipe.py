"""What a fine-tuning is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from primesvt.recipe import describe
from primesvt.training.config import Learning, TrainRecipe

__all__ = ["FinetuneRecipe"]

# Parts of what the training used, see docs/finetuning.md.
EPOCHS, RATE, WARMUP = 10, 10, 10


class FinetuneRecipe(Learning):
    """All that decides what a fine-tuning learns; of a pruned model with a training record, what is
    not asked for follows the training (``after``).

    Example:
        >>> FinetuneRecipe(epochs=3).distillation
        0.9
    """

    epochs: int = Field(10, ge=1)
    """Passes over the training images; after a recorded training, a tenth of its epochs."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak of the learning rate; after a recorded training, a tenth of its."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs in which the learning rate rises linearly; else a tenth of all."""
    distillation: float = Field(0.9, ge=0, le=1)
    """Share of the loss that is the distance from the unpruned model's answers; the rest is the
    cross-entropy to the labels. 0 turns distillation off."""
    temperature: float = Field(4.0, gt=0)
    """Both answers are softened by it before they are compared."""
    feature_weight: float = Field(0.0, ge=0)
    """Weight of the distance from the unpruned model's block outputs, added to the loss."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 autocast on a GPU that has it, else single precision (fp32)."""

    @classmethod
    def after(cls, training: TrainRecipe | None, given: Mapping[str, Any]) -> FinetuneRecipe:
        """The fields given, and for all others what suits a model that was trained so.

        Raises ``ValueError`` in one line for unknown fields and values not allowed.

        Example:
            >>> recipe = FinetuneRecipe.after(TrainRecipe(epochs=70, batch_size=32), {"seed": 3})
            >>> recipe.epochs, recipe.batch_size, recipe.seed
            (7, 32, 3)
        """
        usual = {} if training is None else _short(training)
        try:
            asked = cls.model_validate({**usual, **given})
        except ValidationError as error:
            raise ValueError(describe(error)) from error
        if "warmup_epochs" in given:
            return asked
        return asked.changed(warmup_epochs=asked.epochs / WARMUP)


def _short(training: TrainRecipe) -> dict[str, Any]:
    """A tenth of a training, at a lower rate, on the same batches and changes of the images."""
    kept = ("batch_size", "weight_decay", "label_smoothing", "gradient_clip", "augmentation")
    return {
        **{name: getattr(training, name) for name in kept},
        "epochs": max(1, training.epochs // EPOCHS),
        "learning_rate": training.learning_rate / RATE,
    }

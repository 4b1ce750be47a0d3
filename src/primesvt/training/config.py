"""Recipes of training and of fine-tuning: their fields, defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from primesvt._files import read_yaml
from primesvt.config import describe
from primesvt.training.augmentation import Augmentation

__all__ = ["FinetuneRecipe", "TrainRecipe", "TrainingConfig", "read_content", "read_train_recipe"]


class TrainingConfig(BaseModel):
    """Settings of every training: length, learning rate, regularisation, augmentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    epochs: int = Field(60, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(64, ge=2)
    """Images per step, over all processes."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the learning rate, reached after the warm-up; it then falls to zero as a cosine."""
    warmup_epochs: float = Field(3.0, ge=0)
    """Epochs in which the learning rate rises linearly."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled decay (AdamW) of weights; biases and batch-norm vectors do not decay."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the label that is spread over all classes."""
    gradient_clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null for no limit."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay, per step, of an exponential moving average of all weights; it is the average that is
    judged and kept, with batch-norm statistics of its own. 0 keeps the weights themselves."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training images."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of images and the augmentation."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """fp32: single precision. bf16: forward passes of training under bfloat16 autocast; accuracy
    is measured in single precision all the same. auto: bf16 on a GPU that has it, else fp32."""
    threads: int | None = Field(1, ge=1)
    """CPU threads: 1 repeats a run bitwise; null takes what there is."""
    compile: bool = False
    """Train through `torch.compile`: about twice as quick on a CPU, after a minute of compiling; it
    needs a C++ compiler, and repeats bitwise only on the same machine. Other compiled models of
    this process are compiled again when they are next called."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the recipe file."""
        return self.model_dump(mode="json")

    def changed(self, **changes: Any) -> Self:
        """A checked copy of the recipe with other values; ``None`` keeps the value of a field.

        Example:
            >>> TrainRecipe(epochs=3).changed(seed=1, data=None).seed
            1
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return self.model_validate(self.model_dump() | given)


class TrainRecipe(TrainingConfig):
    """Recipe of a training: the model, its data, and the settings of ``TrainingConfig``.

    Example:
        >>> TrainRecipe(epochs=3).model
        'sdt_v2_digits'
    """

    model: str = "sdt_v2_digits"
    """Name in the registry."""
    model_options: Mapping[str, Any] = {}
    """What to change in the registry entry, such as `time_steps: 4`."""
    data: str = "digits"
    """'digits', or data as `primesvt prune --data` takes them."""
    start: str | None = None
    """Folder of a model whose weights the training begins with, such as one trained with fewer
    time steps; null draws them at random. `norm_weight` is then not used."""
    norm_weight: float = Field(1.0, gt=0)
    """Initial weight of all batch norms. With few time steps, above 1 lets neurons fire, and so
    learn, from the start (cf. threshold-dependent batch norm, Zheng et al., AAAI 2021)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the recipe file: the model first."""
        values = super().to_dict()
        first = {name: values.pop(name) for name in ("model", "model_options", "data")}
        return first | values


def read_train_recipe(path: str | Path) -> TrainRecipe:
    """Read a training recipe; fields left out keep their defaults.

    Raises ``ValueError`` with one line that names unknown fields and values not allowed.
    """
    content = read_content(path)
    try:
        return TrainRecipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error)}") from error


def read_content(path: str | Path) -> dict[str, Any]:
    """Read the fields of a recipe file; ``ValueError`` in one line for a file that has none."""
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise ValueError(f"there is no recipe file {str(path)!r}") from error
    except OSError as error:
        raise ValueError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file; give a recipe in YAML") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds no recipe: expected 'field: value' lines")
    return content


# Parts of what the training used, see docs/finetuning.md.
EPOCHS, RATE, WARMUP = 10, 10, 10
KEPT = ("batch_size", "weight_decay", "label_smoothing", "gradient_clip", "augmentation")


class FinetuneRecipe(TrainingConfig):
    """Recipe of a fine-tuning; ``after`` derives missing fields from the recipe of the training.

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
        """A recipe of the given fields, the others derived from the recipe of the training.

        Raises ``ValueError`` in one line for unknown fields and values not allowed.

        Example:
            >>> recipe = FinetuneRecipe.after(TrainRecipe(epochs=70, batch_size=32), {"seed": 3})
            >>> recipe.epochs, recipe.batch_size, recipe.seed
            (7, 32, 3)
        """
        usual: dict[str, Any] = {}
        if training is not None:
            # A tenth of the training, at a lower rate, on the same batches and augmentations.
            usual = {name: getattr(training, name) for name in KEPT}
            usual["epochs"] = max(1, training.epochs // EPOCHS)
            usual["learning_rate"] = training.learning_rate / RATE
        try:
            asked = cls.model_validate({**usual, **given})
        except ValidationError as error:
            raise ValueError(describe(error)) from error
        if "warmup_epochs" in given:
            return asked
        return asked.changed(warmup_epochs=asked.epochs / WARMUP)

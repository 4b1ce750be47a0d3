"""Train a network from a recipe; fine-tune a pruned one with its unpruned self as teacher."""

from primesvt.training.augmentation import Augmentation
from primesvt.training.config import FinetuneRecipe, TrainRecipe, read_train_recipe
from primesvt.training.finetuning import finetune
from primesvt.training.record import (
    FinetuneRecord,
    FinetuneResult,
    TrainProgress,
    TrainRecord,
)
from primesvt.training.run import train

__all__ = [
    "Augmentation",
    "FinetuneRecipe",
    "FinetuneRecord",
    "FinetuneResult",
    "TrainProgress",
    "TrainRecipe",
    "TrainRecord",
    "finetune",
    "read_train_recipe",
    "train",
]

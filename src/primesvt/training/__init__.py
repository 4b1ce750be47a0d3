"""Train a model from a recipe, and put on record how it was made."""

from primesvt.training.augmentation import Augmentation
from primesvt.training.config import TrainRecipe, read_train_recipe
from primesvt.training.record import Score, TrainProgress, TrainRecord
from primesvt.training.run import train

__all__ = [
    "Augmentation",
    "Score",
    "TrainProgress",
    "TrainRecipe",
    "TrainRecord",
    "read_train_recipe",
    "train",
]

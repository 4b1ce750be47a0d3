"""One training from fresh weights: all epochs, the best of them on the selection images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from primesvt.data import Splits
from primesvt.evaluation import Progress, outcomes
from primesvt.models import DataConfig, SpikingViT
from primesvt.processes import Processes
from primesvt.training.best import Best
from primesvt.training.loop import Loop, learning_rate_factor
from primesvt.training.recipe import TrainRecipe
from primesvt.training.record import Score, score_of

__all__ = ["Fit", "black", "heads_of", "learning_rate_factor"]


class Fit:
    """The moving parts of one training: the loop, and the best weights so far."""

    def __init__(
        self,
        model: SpikingViT,
        splits: Splits,
        recipe: TrainRecipe,
        config: DataConfig,
        processes: Processes,
        workers: int,
    ) -> None:
        assert splits.train is not None
        self.model, self.splits, self.recipe, self.config = model, splits, recipe, config
        self.processes, self.workers = processes, workers
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.weight, recipe.norm_weight)
        self.loop = Loop(
            model,
            splits.train,
            recipe,
            loss=self._loss,
            processes=processes,
            fill=black(config),
            workers=workers,
        )
        self.best = Best()
        self.scored_at_once = max(recipe.batch_size, 128)

    def run(self, progress: Progress) -> None:
        """All epochs; the best weights are kept in memory."""
        for _ in range(self.recipe.epochs):
            self.loop.epoch(progress)
            self.processes.align(self.model)
            self.best.offer(self.model, self.score(self.splits.selection).accuracy)

    def score(self, dataset: Dataset[tuple[Tensor, int]]) -> Score:
        """Top-1 accuracy in evaluation mode."""
        correct = outcomes(
            self.model,
            dataset,
            batch_size=self.scored_at_once,
            device=self.processes.device,
            workers=self.workers,
            processes=self.processes,
        )
        return score_of(correct)

    def _loss(self, output: Tensor | tuple[Tensor, ...], images: Tensor, labels: Tensor) -> Tensor:
        """Smoothed cross-entropy, averaged over the heads of a model that has two."""
        smoothing = self.recipe.label_smoothing
        heads = heads_of(output)
        losses = [F.cross_entropy(head, labels, label_smoothing=smoothing) for head in heads]
        return torch.stack(losses).mean()


def heads_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The logits ``[B, classes]`` of every head, in training mode.

    Example:
        >>> len(heads_of((torch.zeros(1, 2), torch.zeros(1, 2))))
        2
    """
    return output if isinstance(output, tuple) else (output,)


def black(config: DataConfig) -> Tensor:
    """Black after normalisation, ``[C]``.

    Example:
        >>> black(DataConfig(input_size=(1, 8, 8), mean=(0.5,), std=(0.25,))).tolist()
        [-2.0]
    """
    return -torch.tensor(config.mean) / torch.tensor(config.std)

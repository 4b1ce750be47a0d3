"""The training loop: AdamW, warm-up and cosine, the best epoch on the selection images."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from primesvt.data import Splits
from primesvt.evaluation import Progress, outcomes
from primesvt.models import DataConfig, SpikingViT
from primesvt.statistics import wilson_interval
from primesvt.training.recipe import TrainRecipe
from primesvt.training.record import Score

__all__ = ["Fit", "learning_rate_factor"]


class Fit:
    """The moving parts of one training: optimizer, schedule, and the best weights so far."""

    def __init__(
        self,
        model: SpikingViT,
        splits: Splits,
        recipe: TrainRecipe,
        config: DataConfig,
        device: torch.device,
        workers: int,
    ) -> None:
        assert splits.train is not None
        self.model, self.splits, self.recipe, self.config = model, splits, recipe, config
        self.device, self.workers = device, workers
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.weight, recipe.norm_weight)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.loader = training_loader(splits.train, recipe.batch_size, self.generator, workers)
        self.optimizer = _optimizer(model, recipe)
        self.steps = recipe.epochs * len(self.loader)
        warmup = round(recipe.warmup_epochs * len(self.loader))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, warmup, self.steps)
        )
        self.fill = -torch.tensor(config.mean) / torch.tensor(config.std)
        self.scored_at_once = max(recipe.batch_size, 128)
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}

    def run(self, progress: Progress) -> None:
        """All epochs; the best weights are kept in memory."""
        for epoch in range(1, self.recipe.epochs + 1):
            self.losses.append(self._epoch(progress))
            self.accuracies.append(self.score(self.splits.selection).accuracy)
            if self.accuracies[-1] >= max(self.accuracies):
                self.best_epoch = epoch
                self.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}

    def score(self, dataset: Dataset[tuple[Tensor, int]]) -> Score:
        """Top-1 accuracy in evaluation mode."""
        correct = outcomes(
            self.model,
            dataset,
            batch_size=self.scored_at_once,
            device=self.device,
            workers=self.workers,
        )
        low, high = wilson_interval(int(correct.sum()), len(correct))
        return Score(accuracy=float(correct.mean()), low=low, high=high, images=len(correct))

    def _epoch(self, progress: Progress) -> float:
        """One pass over the training images; the mean loss."""
        self.model.train()
        total = 0.0
        done = len(self.losses) * len(self.loader)
        for number, (images, labels) in enumerate(self.loader, start=done + 1):
            images = self.recipe.augmentation(images, self.fill, self.generator)
            loss = self._loss(images.to(self.device), labels.to(self.device))
            if not math.isfinite(loss.item()):
                raise ValueError(
                    f"the loss is {loss.item()} in step {number}: lower learning_rate "
                    f"(now {self.recipe.learning_rate}) or lengthen warmup_epochs"
                )
            self._step(loss)
            total += loss.item()
            progress("training", number, self.steps)
        return total / len(self.loader)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Smoothed cross-entropy, averaged over the heads of a model that has two."""
        output = self.model(images)
        heads = output if isinstance(output, tuple) else (output,)
        smoothing = self.recipe.label_smoothing
        losses = [F.cross_entropy(head, labels, label_smoothing=smoothing) for head in heads]
        return torch.stack(losses).mean()

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
        self.schedule.step()


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Linear rise over ``warmup`` steps, then half a cosine down to zero.

    Loshchilov and Hutter, "SGDR", ICLR 2017, cosine annealing with one period.

    Example:
        >>> [round(learning_rate_factor(step, 2, 6), 2) for step in range(7)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.AdamW:
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def training_loader(
    dataset: Dataset[tuple[Tensor, int]], batch_size: int, generator: torch.Generator, workers: int
) -> DataLoader[Any]:
    size = len(dataset)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_size=min(batch_size, size),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        generator=generator,
        persistent_workers=workers > 0,
    )

"""The best weights of a training, by their accuracy on the selection images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primesvt.training.snapshot import Snapshot, named

__all__ = ["Best"]


class Best:
    """Accuracies as they come, and the weights of the best; of equals, the later.

    Args:
        first: the number of the first candidate: 0 where weights are judged before any training.

    Example:
        >>> best = Best()
        >>> for accuracy in (0.5, 0.7, 0.6):
        ...     best.offer(torch.nn.Linear(1, 1), accuracy)
        >>> best.epoch
        2
    """

    def __init__(self, *, first: int = 1) -> None:
        self.first, self.epoch = first, first
        self.accuracies: list[float] = []
        self.state: dict[str, Tensor] = {}

    def offer(self, model: nn.Module, accuracy: float) -> None:
        """Take the weights as they are now, if none before were better."""
        self.accuracies.append(accuracy)
        if accuracy >= max(self.accuracies):
            self.epoch = self.first + len(self.accuracies) - 1
            self.state = {name: value.clone() for name, value in model.state_dict().items()}

    def give(self, model: nn.Module) -> None:
        """Put the best weights into a model."""
        model.load_state_dict(self.state)

    def snapshot(self) -> Snapshot:
        """What the choice depends on so far."""
        facts = {"best": self.epoch, "accuracies": list(self.accuracies)}
        return Snapshot(tensors=named("best", self.state), facts=facts)

    def restore(self, snapshot: Snapshot, device: torch.device) -> None:
        """Go on from there."""
        self.epoch = snapshot.facts["best"]
        self.accuracies = list(snapshot.facts["accuracies"])
        self.state = {k: v.to(device) for k, v in snapshot.part("best").items()}

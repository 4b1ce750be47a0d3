"""A network as the reference that everything exported is compared with, on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from primesvt.channels.copies import working_copy
from primesvt.evaluation.batch_dependence import mixing_of
from primesvt.exporting.agreement import Agreement, compare
from primesvt.exporting.runtime import Runner, model_runner
from primesvt.exporting.source import Samples

__all__ = ["Comparison", "Progress"]

Progress = Callable[[str, int, int], None]


@dataclass(kw_only=True)
class Comparison:
    """Compares files with a network, and refuses those that agree too little.

    Args:
        model: the network; left as it is.
        samples: what both compute.
        level: share of samples whose prediction must be the same.
        progress: called as ``progress(stage, done, total)``.
    """

    model: nn.Module = field(repr=False)
    samples: Samples
    level: float
    progress: Progress | None = field(default=None, repr=False)

    def __call__(
        self, file: Runner, watched: Runner | None, neurons: tuple[str, ...] = ()
    ) -> Agreement:
        """How well a file agrees; ``ValueError`` where that is not enough."""
        total, progress = len(self.samples), self.progress
        found = compare(
            self.samples,
            reference=self.reference,
            file=file,
            watched=watched,
            neurons=neurons,
            source=self.samples.source,
            progress=progress and (lambda done: progress("comparing", done, total)),
        )
        if found.predictions < self.level:
            raise ValueError(self._refusal(found))
        return found

    def holds(self, file: Runner) -> bool:
        """Whether enough predictions are the same."""
        parts = [file(inputs)[0].argmax(1) for inputs, _ in self.samples]
        return float((torch.cat(parts) == self._predictions).double().mean()) >= self.level

    @cached_property
    def reference(self) -> Runner:
        """The network, one sample at a time where those of a batch would influence each other."""
        network = working_copy(self.model).float()
        return model_runner(network, axis=self.samples.axis, alone=bool(mixing_of(network)))

    @cached_property
    def _predictions(self) -> Tensor:
        return torch.cat([self.reference(inputs)[0].argmax(1) for inputs, _ in self.samples])

    def _refusal(self, found: Agreement) -> str:
        changed = round((1 - found.predictions) * found.samples)
        spikes = ""
        if found.least is not None and found.equal_spikes is not None:
            spikes = (
                f"; {found.equal_spikes:.2%} of the spikes are the same, fewest in"
                f" {found.least[0]} ({found.least[1]:.2%})"
            )
        return (
            f"the export changes the prediction of {changed} of {found.samples} samples"
            f" ({found.predictions:.2%} agree, {self.level:.2%} asked){spikes}; it was deleted."
            " Ask for a lower agreement if that is good enough"
        )

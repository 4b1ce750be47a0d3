"""How well an exported file agrees with its network: predictions, logits and spikes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from primesvt.evaluation.batch_dependence import mixing_of
from primesvt.exporting.runtime import Runner, model_runner
from primesvt.exporting.source import Samples
from primesvt.models.forward import working_copy
from primesvt.models.state import settle

__all__ = ["Agreement", "Comparison", "Progress", "compare"]


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
        """Measure how well a file agrees; ``ValueError`` where that is not enough."""
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
            changed = round((1 - found.predictions) * found.samples)
            spikes = ""
            if found.least is not None and found.equal_spikes is not None:
                spikes = (
                    f"; {found.equal_spikes:.2%} of the spikes are the same, fewest in"
                    f" {found.least[0]} ({found.least[1]:.2%})"
                )
            raise ValueError(
                f"the export changes the prediction of {changed} of {found.samples} samples"
                f" ({found.predictions:.2%} agree, {self.level:.2%} asked){spikes};"
                " it was deleted."
                " Ask for a lower agreement if that is good enough"
            )
        return found

    def holds(self, file: Runner) -> bool:
        """Whether at least the share ``level`` of the file's predictions is the network's."""
        parts = [file(inputs)[0].argmax(1) for inputs, _ in self.samples]
        return float((torch.cat(parts) == self._predictions).double().mean()) >= self.level

    @cached_property
    def reference(self) -> Runner:
        """A runner of the network; one sample at a time if samples of a batch affect each other."""
        network = working_copy(self.model).float()
        settle(network, (self.samples.example()[:2].float(),))
        return model_runner(network, axis=self.samples.axis, alone=bool(mixing_of(network)))

    @cached_property
    def _predictions(self) -> Tensor:
        return torch.cat([self.reference(inputs)[0].argmax(1) for inputs, _ in self.samples])


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well an exported file and its network agree on the same samples.

    Attributes:
        samples: how many were compared.
        source: where they come from, in words.
        predictions: share of samples with the same prediction.
        mean_difference: mean absolute difference of the logits.
        largest_difference: the largest.
        scale: mean absolute value of the network's own logits.
        spikes: neuron layer -> share of its outputs that are equal, bit for bit.
        accuracy: share of right predictions of the network, and of the file; ``None`` without
            labels.
    """

    samples: int
    source: str
    predictions: float
    mean_difference: float
    largest_difference: float
    scale: float
    spikes: Mapping[str, float] = field(default_factory=dict, repr=False)
    accuracy: tuple[float, float] | None = None

    @property
    def equal_spikes(self) -> float | None:
        """Share of equal neuron outputs, as a mean over all neuron layers."""
        shares = self.spikes.values()
        return sum(shares) / len(shares) if shares else None

    @property
    def least(self) -> tuple[str, float] | None:
        """The neuron layer that agrees least, and its share."""
        return min(self.spikes.items(), key=lambda item: item[1], default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"equal_spikes": self.equal_spikes}


def compare(
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    reference: Runner,
    file: Runner,
    watched: Runner | None,
    neurons: Sequence[str],
    source: str,
    progress: Callable[[int], None] | None = None,
) -> Agreement:
    """Run a network and a file made of it on the same batches.

    Args:
        batches: inputs, and labels where they are known.
        reference: the network: logits, then the spikes of ``neurons``.
        file: what is shipped; its first output is compared.
        watched: the same graph with the spikes as further outputs; ``file`` itself where it has
            them, ``None`` to compare no spikes.
        neurons: names of the neuron layers.
        source: what the samples are.
        progress: called with the number of samples done.

    Raises:
        ValueError: outputs of another number or shape, or no samples.
    """
    counts = _Counts(neurons if watched is not None else ())
    for inputs, labels in batches:
        expected = reference(inputs)
        found = file(inputs)
        spikes = found if watched is file else watched(inputs) if watched is not None else []
        counts.logits(expected[0], found[0], labels)
        counts.spikes(expected[1:], spikes[1:])
        if progress is not None:
            progress(counts.samples)
    return counts.agreement(source)


class _Counts:
    """Sums over batches from which an ``Agreement`` is made."""

    def __init__(self, neurons: Sequence[str]) -> None:
        self.samples = self.same = 0
        self.right: list[int] | None = [0, 0]
        self.difference = self.largest = self.magnitude = 0.0
        self.entries = 0
        self.neurons = dict.fromkeys(neurons, (0, 0))

    def logits(self, expected: Tensor, found: Tensor, labels: Tensor | None) -> None:
        if expected.shape != found.shape or expected.ndim != 2:
            raise ValueError(
                f"the network gives {list(expected.shape)} and the file {list(found.shape)} where"
                " logits [batch, classes] are needed; export a network that gives these"
            )
        for answer, who in ((expected, "network"), (found, "file")):
            if not bool(answer.isfinite().all()):
                raise ValueError(f"the {who} gives logits that are not finite; nothing was kept")
        gap = (expected.double() - found.double()).abs()
        self.samples += len(expected)
        self.entries += gap.numel()
        self.same += int((expected.argmax(1) == found.argmax(1)).sum())
        self.difference += float(gap.sum())
        self.largest = max(self.largest, float(gap.max()))
        self.magnitude += float(expected.double().abs().sum())
        if labels is None or self.right is None:
            self.right = None
            return
        for place, logits in enumerate((expected, found)):
            self.right[place] += int((logits.argmax(1) == labels).sum())

    def spikes(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        if not self.neurons:
            return
        for name, before, after in zip(self.neurons, expected, found, strict=True):
            if before.shape != after.shape:
                raise ValueError(
                    f"{name} gives {list(before.shape)} in the network and {list(after.shape)} in"
                    " the file; say which axis of the input counts samples"
                )
            equal, total = self.neurons[name]
            self.neurons[name] = (
                equal + int((before == after).sum()),
                total + before.numel(),
            )

    def agreement(self, source: str) -> Agreement:
        if not self.samples:
            raise ValueError("there is nothing to compare on; give at least one sample")
        right = self.right
        return Agreement(
            samples=self.samples,
            source=source,
            predictions=self.same / self.samples,
            mean_difference=self.difference / self.entries,
            largest_difference=self.largest,
            scale=self.magnitude / self.entries,
            spikes={name: equal / total for name, (equal, total) in self.neurons.items() if total},
            accuracy=None if right is None else (right[0] / self.samples, right[1] / self.samples),
        )

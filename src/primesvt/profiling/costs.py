"""What one network costs and how good it is: the figures before and after pruning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from primesvt.evaluation.confidence import wilson_interval
from primesvt.models.forward import batch_of
from primesvt.profiling.energy import Energy, energy_of
from primesvt.profiling.memory import (
    buffer_bytes,
    file_bytes,
    membrane_bytes,
    parameter_bytes,
    parameter_count,
    peak_activation_bytes,
)
from primesvt.profiling.operations import Operations, count_operations
from primesvt.profiling.timing import Latency

__all__ = ["Accuracy", "Costs", "accuracy_of", "costs_of"]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 on one set as a fraction, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """One network: its size, what it takes to run it, and how good it is.

    ``selection`` and ``test`` are there only for a set of images, ``score`` only for a ``score``.
    Files of earlier versions lack ``file_bytes``, ``operations`` and ``energy``; ``latency`` is
    there only where it was asked for.

    Attributes:
        parameters: how many, shared ones once.
        parameter_bytes: their bytes: the memory that savings are measured in.
        buffer_bytes: bytes of running statistics and other buffers.
        file_bytes: ``model.safetensors`` on the disk.
        membrane_bytes_per_sample: one potential per neuron.
        peak_activation_bytes_per_sample: most bytes of activations at a time.
        operations: multiply-accumulates, SynOps and firing rates, of every module too.
        energy: two estimates for one sample, in joules (``primesvt.profiling.energy.formulas``).
        latency: measured times of a forward pass.
    """

    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    membrane_bytes_per_sample: int
    peak_activation_bytes_per_sample: int
    selection: Accuracy | None = None
    test: Accuracy | None = None
    score: float | None = None
    file_bytes: int | None = None
    operations: Operations | None = None
    energy: Energy | None = None
    latency: tuple[Latency, ...] = field(default=())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Costs:
        """Read what ``dataclasses.asdict`` made, from JSON and from earlier versions too."""
        values = dict(content)
        kinds = {
            "selection": _accuracy,
            "test": _accuracy,
            "operations": Operations.from_dict,
            "energy": _energy,
        }
        for name, read in kinds.items():
            values[name] = read(values[name]) if values.get(name) else None
        values["latency"] = tuple(Latency(**each) for each in values.get("latency", ()))
        return cls(**values)


def _accuracy(content: Mapping[str, Any]) -> Accuracy:
    return Accuracy(**content)


def _energy(content: Mapping[str, Any]) -> Energy:
    return Energy(**content)


def accuracy_of(value: float, images: int | None) -> Accuracy | None:
    """A top-1 fraction with its interval; ``None`` without images.

    Example:
        >>> accuracy_of(0.5, 2)
        Accuracy(accuracy=0.5, low=0.0945..., high=0.9054..., images=2)
    """
    if images is None:
        return None
    low, high = wilson_interval(round(value * images), images)
    return Accuracy(accuracy=value, low=low, high=high, images=images)


def costs_of(
    model: nn.Module,
    example: tuple[Any, ...],
    *,
    inputs: Iterable[tuple[Any, ...]] | None = None,
    selection: Accuracy | None = None,
    test: Accuracy | None = None,
    score: float | None = None,
    latency: tuple[Latency, ...] = (),
) -> Costs:
    """Measure sizes, run the example once for memory, and inputs for operations and firing rates.

    Args:
        model: any network.
        example: inputs, as the model takes them.
        inputs: batches to count operations on, without labels; the example when not given.
        selection, test, score: how good the network is.
        latency: how long it takes.

    Example:
        >>> import torch
        >>> costs = costs_of(nn.Linear(4, 2, bias=False), (torch.rand(1, 4),))
        >>> costs.parameter_bytes, costs.operations.macs
        (32, 8.0)
    """
    size = parameter_bytes(model)
    operations = count_operations(model, [example] if inputs is None else inputs)
    return Costs(
        parameters=parameter_count(model),
        parameter_bytes=size,
        buffer_bytes=buffer_bytes(model),
        file_bytes=file_bytes(model),
        membrane_bytes_per_sample=membrane_bytes(model, example),
        peak_activation_bytes_per_sample=peak_activation_bytes(model, example) // batch_of(example),
        operations=operations,
        energy=energy_of(operations, size),
        latency=latency,
        selection=selection,
        test=test,
        score=score,
    )

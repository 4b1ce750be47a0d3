"""Importance by the activity of channels on calibration inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from primesvt.calibration import Moments
from primesvt.channels import ChannelGroup
from primesvt.importance.base import CriterionContext, Scores, criterion

__all__ = ["activity", "firing_rate", "membrane", "taylor"]


@criterion("firing_rate")
def firing_rate(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """Firing rate of each channel's neuron, ``[positions, size]``; the mean over tied neurons.

    Channels without a neuron of their own (inner channels of a linear chain, residual streams)
    count by the mean absolute input of what reads them.
    """
    statistics = evidence.seen
    if statistics.neurons(group):
        return _over_neurons(evidence, group, statistics.rates)
    return _over_readers(evidence, group, lambda name: statistics.moments(name).mean.abs())


@criterion("membrane")
def membrane(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """Mean absolute membrane potential of each channel's neuron.

    Channels without a neuron of their own count by the root mean square of what reads them.

    Source: Li et al., "Towards efficient deep spiking neural networks construction with spiking
    activity based pruning" (SCA, arXiv 2406.01072), ICML 2024.
    """
    statistics = evidence.seen
    if statistics.neurons(group):
        return _over_neurons(evidence, group, statistics.potentials)
    return _over_readers(evidence, group, lambda name: _root_mean_square(statistics.moments(name)))


@criterion("activity")
def activity(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """Variance of each channel's spikes times the squared norm of the weights that read it.

    This is the squared error in the readers' outputs when the channel is replaced by its mean.
    Where only a product reads the channels (q and k), it is the squared norm of their part of it.
    """
    statistics = evidence.seen
    if not statistics.readers[group.name]:
        return statistics.products(group).diagonal(dim1=1, dim2=2).numpy().copy()
    total = np.zeros((group.positions, group.size))
    for reader in statistics.readers[group.name]:
        variance = statistics.moments(reader.module).covariance.diagonal()
        weights = reader.columns(evidence.model).square().sum(1)
        total += reader.per_channel(variance * weights, group)
    return total


@criterion("taylor")
def taylor(evidence: CriterionContext, group: ChannelGroup) -> Scores:
    """First-order effect of silencing each channel on the loss, without labels.

    The mean over samples of ``|sum of value x gradient|`` where the channel is read, or behind its
    neuron; the loss is the cross-entropy to the network's own prediction.

    Source: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference" (arXiv 1611.06440), equation 8.
    """
    statistics = evidence.seen
    if not statistics.readers[group.name]:
        return _over_neurons(evidence, group, statistics.sensitivities)
    return _over_readers(evidence, group, statistics.sensitivities)


def _root_mean_square(moments: Moments) -> Tensor:
    """Root mean square of every input channel of a layer."""
    return (moments.products.diagonal() / max(1, moments.count)).sqrt()


def _over_neurons(
    evidence: CriterionContext, group: ChannelGroup, values: Callable[[str], Tensor]
) -> Scores:
    """Scores of channels by a value of their neurons, the mean over tied ones."""
    names = evidence.seen.neurons(group)
    if not names:
        raise ValueError(
            f"no neuron and no layer shows what the channels of {group.name} do; choose importance"
            " l2, l2_folded, l1 or random, or exclude the group"
        )
    found = [values(name).double().numpy() for name in names]
    mean: Scores = np.mean(found, axis=0).reshape(group.positions, group.size)
    return mean


def _over_readers(
    evidence: CriterionContext, group: ChannelGroup, values: Callable[[str], Tensor]
) -> Scores:
    """Scores of channels by a value in front of the layers that read them, added up."""
    readers = evidence.seen.readers[group.name]
    if not readers:
        return _over_neurons(evidence, group, values)
    total = np.zeros((group.positions, group.size))
    for reader in readers:
        total += reader.per_channel(values(reader.module), group)
    return total

"""Removal of what changes no prediction, before pruning: dead parameters, silent channels."""

from primesvt.models.strip import match_state
from primesvt.pruning.lossless.record import LosslessRecord, Removed
from primesvt.pruning.lossless.step import StartNetwork, remove_constant_channels, remove_unused

__all__ = [
    "LosslessRecord",
    "Removed",
    "StartNetwork",
    "match_state",
    "remove_constant_channels",
    "remove_unused",
]

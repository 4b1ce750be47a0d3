"""Statistics of a network on unlabelled inputs: connections, spikes, covariances, gradients."""

from primesvt.calibration.inputs import CALIBRATION_BATCH, CalibrationSet, calibration_of
from primesvt.calibration.moments import Moments
from primesvt.calibration.readers import Consumer, readers_of
from primesvt.calibration.statistics import ActivationStatistics
from primesvt.calibration.wiring import ModuleGraph, trace_modules
from primesvt.models.forward import evaluating

__all__ = [
    "CALIBRATION_BATCH",
    "ActivationStatistics",
    "CalibrationSet",
    "Consumer",
    "ModuleGraph",
    "Moments",
    "calibration_of",
    "evaluating",
    "readers_of",
    "trace_modules",
]

"""What unlabeled inputs show of a network: who reads whom, spikes, covariances, gradients."""

from primesvt.calibration.inputs import CALIBRATION_BATCH, Calibration, calibration_of
from primesvt.calibration.moments import Moments
from primesvt.calibration.readers import Reader, readers_of
from primesvt.calibration.statistics import Activity
from primesvt.calibration.wiring import Wiring, wire
from primesvt.models.forward import calibrating

__all__ = [
    "CALIBRATION_BATCH",
    "Activity",
    "Calibration",
    "Moments",
    "Reader",
    "Wiring",
    "calibrating",
    "calibration_of",
    "readers_of",
    "wire",
]

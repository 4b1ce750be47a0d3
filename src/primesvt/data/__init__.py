"""Labelled images and event frames, and their split: train, calibration, selection, test."""

from primesvt.data.errors import DataError
from primesvt.data.images import ImageSet, Preprocess
from primesvt.data.loading import load_data
from primesvt.data.splits import Splits, check_channels, check_classes, check_labels

__all__ = [
    "DataError",
    "ImageSet",
    "Preprocess",
    "Splits",
    "check_channels",
    "check_classes",
    "check_labels",
    "load_data",
]

"""Labelled images and event frames, and their split: train, calibration, selection, test."""

from .errors import DataError
from .images import ImageSet, Preprocess
from .loading import load_data
from .splits import Splits, check_channels, check_classes, check_labels

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

"""Limits say what they mean, and refuse what cannot be meant."""

from __future__ import annotations

import math

import pytest

from primesvt.config import Constraints, parse_bytes


@pytest.mark.parametrize(
    ("given", "phrases"),
    [
        ({"max_accuracy_drop": -1}, ["max_accuracy_drop is -1", "at least 0"]),
        ({"max_accuracy_drop": math.nan}, ["max_accuracy_drop is nan"]),
        ({"max_accuracy_drop": math.inf}, ["max_accuracy_drop is inf"]),
        ({"max_accuracy_drop": "3"}, ["max_accuracy_drop is '3'", "number"]),
        ({"min_memory_saving": 25}, ["25", "0.25"]),
        ({"min_memory_saving": "25"}, ["25", "0.25"]),
        ({"min_memory_saving": "25%"}, ["25%", "0.25"]),
        ({"min_memory_saving": 1.0}, ["is 1,", "8MB"]),
        ({"min_memory_saving": 8_000_000}, ["8MB"]),
        ({"min_memory_saving": -0.1}, ["-0.1"]),
        ({"min_memory_saving": "8 XB"}, ["'8 XB'", "MB = 1e6"]),
        ({"max_parameter_memory": "lots"}, ["max_parameter_memory is 'lots'", "'8MB'"]),
        ({"max_parameter_memory": "0MB"}, ["at least one byte"]),
        ({"max_parameter_memory": True}, ["True", "number"]),
        ({"min_memory_saving": None, "stop_at_saving": True}, ["stop_at_saving", "min_memory"]),
        ({"max_latency": 12}, ["max_latency is 12", "between 0 and 1", "'12ms'"]),
        ({"max_latency": 0}, ["max_latency is 0", "0.67"]),
        ({"max_latency": "12 minutes"}, ["'12 minutes'", "'12ms'"]),
        ({"max_latency": "0ms"}, ["'0ms'"]),
        ({"max_latency": "quick"}, ["'quick'", "0.67"]),
        ({"max_latency": math.nan}, ["nan", "between 0 and 1"]),
        ({"max_latency": True}, ["True"]),
        ({"latency_runtime": "onnxruntime"}, ["'onnxruntime'", "give max_latency"]),
        ({"latency_batch": 0}, ["latency_batch is 0", "at least 1"]),
        ({"latency_runtime": "tensorrt"}, ["'tensorrt'", "pytorch, onnxruntime"]),
        ({"max_membrane": "60"}, ["max_membrane is '60'", "'8MB'"]),
        ({"max_membrane": -1}, ["max_membrane is -1"]),
    ],
)
def test_refused_in_one_line(given, phrases):
    with pytest.raises(ValueError) as refusal:
        Constraints(**given)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(phrase in message for phrase in phrases), message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8MB", 8_000_000),
        ("8 MB", 8_000_000),
        (".5kB", 500),
        ("1.5KiB", 1536),
        ("2GB", 2 * 10**9),
        ("2GiB", 2**31),
        ("12B", 12),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("given", "required"),
    [
        ({}, 0),
        ({"min_memory_saving": None}, 0),
        ({"min_memory_saving": 0.1}, 100),
        ({"min_memory_saving": "0.5"}, 500),
        ({"min_memory_saving": "300B"}, 300),
        ({"min_memory_saving": None, "max_parameter_memory": "400B"}, 600),
        ({"max_parameter_memory": 900}, 100),
        ({"max_parameter_memory": "1kB"}, 0),
        ({"min_memory_saving": 0.25, "max_parameter_memory": 900}, 250),
    ],
)
def test_required_bytes_of_a_thousand(given, required):
    assert Constraints(**given).required_bytes(1000) == required


def test_fraction_needs_no_extra_byte_by_rounding():
    assert [Constraints(min_memory_saving=0.1).required_bytes(n) for n in (30, 70, 90)] == [3, 7, 9]


def test_more_bytes_than_there_are_names_both():
    with pytest.raises(ValueError, match=r"8MB.*464,488"):
        Constraints(min_memory_saving="8MB").required_bytes(464_488)


def test_drop_in_points_or_in_the_scores_unit():
    limits = Constraints(max_accuracy_drop=3)
    assert limits.allowed_drop(0.9, points=True) == 0.03
    assert limits.allowed_drop(90.0, points=False) == 3
    assert limits.allowed_drop(-5.0, points=False) == 3


@pytest.mark.parametrize(("reference", "points"), [(0.9, True), (90.0, False)])
def test_drop_of_all_there_is_names_both(reference, points):
    with pytest.raises(ValueError, match=r"max_accuracy_drop is 90,.*only 90"):
        Constraints(max_accuracy_drop=90).allowed_drop(reference, points=points)


def test_accuracy_of_nothing_cannot_be_compared():
    with pytest.raises(ValueError, match="accuracy of 0"):
        Constraints(max_accuracy_drop=0).allowed_drop(0.0, points=True)


@pytest.mark.parametrize(
    ("given", "milliseconds"),
    [
        (0.25, 10.0),
        ("0.25", 10.0),
        ("12ms", 12.0),
        ("12 ms", 12.0),
        ("0.1 s", 100.0),
        ("800us", 0.8),
        (None, None),
    ],
)
def test_time_allowed_of_forty_milliseconds(given, milliseconds):
    assert Constraints(max_latency=given).allowed_milliseconds(40.0) == milliseconds


def test_potentials_allowed():
    assert Constraints(max_membrane="60kB").allowed_membrane_bytes == 60_000
    assert Constraints(max_membrane=500).allowed_membrane_bytes == 500
    assert Constraints().allowed_membrane_bytes is None
    limited = ({}, {"max_latency": 0.5}, {"max_membrane": 1})
    assert [Constraints(**given).steers for given in limited] == [False, True, True]

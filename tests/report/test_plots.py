"""Axes begin and end at round numbers around what they show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primesvt.report.plots import axis

NUMBERS = st.floats(-1e6, 1e6).map(lambda x: round(x, 4))


@given(NUMBERS, st.floats(1e-3, 1e6), st.integers(2, 9), st.booleans())
def test_every_value_and_every_tick_lies_on_the_axis(low, width, count, tight):
    high = low + width
    made = axis(low, high, title="x", count=count, tight=tight)
    assert made.low <= low + 1e-6 * width
    assert high - 1e-6 * width <= made.high
    places = [place for place, _ in made.ticks]
    assert places == sorted(places)
    assert places[0] >= 0
    assert places[-1] <= 100
    assert 2 <= len(places) <= 2 * count + 3
    assert len({label for _, label in made.ticks}) == len(places)


@given(NUMBERS, st.floats(1e-3, 1e3))
def test_a_tick_stands_where_its_label_says(low, width):
    made = axis(low, low + width, title="x")
    for place, label in made.ticks:
        value = float(label.removesuffix("%"))
        assert made.low + place / 100 * (made.high - made.low) == pytest.approx(
            value, abs=2e-5 * (made.high - made.low)
        )


def test_labels_of_quarters_keep_their_digit():
    assert [label for _, label in axis(0, 12.5, title="x").ticks][1] == "2.5%"


def test_one_value_has_an_axis():
    assert axis(0.0, 0.0, title="x").at(0.0) == 0.0


def test_what_lies_outside_stands_at_the_edge():
    made = axis(90, 100, title="x")
    assert (made.at(80), made.at(120)) == (0.0, 100.0)

"""Before, after and change, as a terminal and a page show them."""

from __future__ import annotations

import pytest

from primesvt.report import changes, headline

from .runs import costs, metrics_of


def test_measures_come_with_their_change():
    rows = {row.measure: row for row in changes(metrics_of())}
    assert rows["Top-1, test set of 450"].change == "-1.20 points"
    assert (rows["Parameter memory"].before, rows["Parameter memory"].change) == (
        "464.5 kB",
        "-25.0%",
    )
    assert {row.part for row in rows.values()} == {"quality", "size", "cost"}


def test_without_a_test_set_the_selection_set_is_named():
    metrics = metrics_of(before=costs(400, 0.99, None), after=costs(300, 0.98, None))
    assert headline(metrics).endswith("-1.00 points of accuracy on the selection set")
    assert not any("test set" in row.measure for row in changes(metrics))


def test_what_was_not_measured_has_no_row():
    metrics = metrics_of()
    for when in ("before", "after"):
        del metrics[when]["peak_activation_bytes_per_sample"]
    assert not any("Peak" in row.measure for row in changes(metrics))


@pytest.mark.parametrize(("share", "named"), [(0.004, False), (0.0123, True)])
def test_what_went_losslessly_is_named_where_it_shows(share, named):
    line = headline(metrics_of(lossless={"share": share}))
    assert ("after 1.2% lossless" in line) is named
    assert ("lossless" in line) is named

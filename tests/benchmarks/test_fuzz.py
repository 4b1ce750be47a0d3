"""A short part of the fuzzer, and of its kills: damaged input is one line, killed runs go on."""

from __future__ import annotations

import signal
from collections import Counter

import fuzz
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def stuff(tmp_path_factory):
    return fuzz.Material.make(tmp_path_factory.mktemp("fuzz"))


def test_damaged_inputs_are_one_line_and_valid_ones_are_taken(stuff):
    found = fuzz.search(42, 7, 8, stuff)
    assert [row for row in found if row["problem"]] == []
    counts = Counter(row["kind"] for row in found)
    assert counts == {"controls": 8, **dict.fromkeys(fuzz.KINDS, 6)}


def test_the_fuzzer_finds_what_is_wrong(stuff, monkeypatch):
    def fails(*_):
        raise KeyError("odd")

    assert fuzz.tried(fails, valid=False)[0] == "traceback"
    assert fuzz.tried(["inspect", "nowhere"], valid=True)[0] == "refused control"
    monkeypatch.setattr(fuzz.primesvt.cli.app.Models, "run", fails)
    assert fuzz.tried(["models"], valid=False)[0] == "exit 70"
    monkeypatch.setattr(fuzz.primesvt.cli.app.Models, "run", lambda *_: print("\x1b[2J") or 0)
    assert fuzz.tried(["models"], valid=False)[0] == "not one printable line"


@pytest.fixture(scope="module")
def whole(stuff):
    """The files of a run that nothing disturbs."""
    place = fuzz._fresh(stuff, "prune", "whole")
    assert fuzz.started(fuzz.works(stuff)["prune"], place)[0] == 0
    return fuzz.result(place)


@pytest.mark.parametrize(
    ("when", "number", "how"),
    [
        ("before", 1, signal.SIGKILL),  # while the recipe is written
        ("after", 2, signal.SIGKILL),
        ("stage", 2, signal.SIGTERM),
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(stuff, whole, when, number, how):
    words = fuzz.works(stuff)["prune"]
    assert fuzz._killed(stuff, "prune", words, whole, when, number, how) == ""

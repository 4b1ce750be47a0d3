"""``primesvt report``: one run renews its page, several are compared."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from primesvt.cli import main

from .runs import whole_run


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole_run(Path("walk"), "prime")
    whole_run(Path("together"), "allocate")

    def run(*words):
        code = main(["report", *words])
        return code, *capsys.readouterr()

    return run


def test_one_run_renews_its_page(said):
    Path("walk/report.html").write_text("old")
    assert said("walk") == (0, f"The report: walk{os.sep}report.html\n", "")
    assert "prime" in Path("walk/report.html").read_text()


def test_several_runs_are_compared(said):
    assert said("walk", "together") == (0, "The comparison: comparison.html\n", "")
    assert "2 runs compared" in Path("comparison.html").read_text()


@pytest.mark.parametrize("runs", [("walk",), ("walk", "together")])
def test_the_page_goes_where_it_is_told(said, runs):
    code, out, _ = said(*runs, "--out", "pages/it.html", "--json")
    assert code == 0
    assert json.loads(out) == {"runs": list(runs), "report": "pages/it.html"}
    assert Path("pages/it.html").is_file()
    assert not Path("walk/report.html").exists()


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ((), "no run given"),
        (("nothing",), "nothing holds no finished run: recipe.yaml is missing"),
        (("walk", "walk"), "walk is given twice"),
        (("walk", "--out", "together"), "--out together is a folder"),
        (("walk", "together/plan.json"), "holds no finished run"),
    ],
)
def test_a_mistake_is_one_line(said, words, phrase):
    code, out, err = said(*words)
    assert (code, out) == (1, "")
    assert phrase in err
    assert err.count("\n") == 1
    assert not Path("comparison.html").exists()

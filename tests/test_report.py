"""The report page is made from a run folder's files, and needs nothing else."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from primesvt.recipe import PruneRecipe
from primesvt.report import changes, headline, write_report

SCORE = {"accuracy": 0.96, "low": 0.937, "high": 0.975, "images": 450}
BEFORE = {
    "parameters": 116_122,
    "parameter_bytes": 464_488,
    "buffer_bytes": 18_000,
    "membrane_bytes_per_sample": 40_000,
    "selection": SCORE,
    "test": SCORE,
}
AFTER = BEFORE | {
    "parameters": 87_092,
    "parameter_bytes": 348_366,
    "test": SCORE | {"accuracy": 0.948},
}
METRICS: dict[str, Any] = {
    "met": True,
    "verdict": "All limits are met; the accuracy limit of 2 points bound.",
    "saving": 0.25,
    "before": BEFORE,
    "after": AFTER,
    "data": "digits: train 897, selection 450, test 450 images",
    "selection_from_train": False,
    "notes": [],
}
STEP = {
    "group": "blocks.block3_0.mlp.fc1",
    "rate": 0.5,
    "before": [4, 8],
    "after": [4, 3],
    "accuracy": 0.951,
    "saving": 0.25,
}


def write_run(folder: Path, *, metrics: dict[str, Any] = METRICS, steps: list[Any]) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(PruneRecipe(model="sdt_v2_digits").to_yaml())
    (folder / "plan.json").write_text(json.dumps({"steps": steps}))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


class Page(HTMLParser):
    """Text and tags of a page; fails where tags do not close in order."""

    VOID = ("meta",)

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_says_what_was_traded_for_what(tmp_path):
    path = write_report(write_run(tmp_path / "run", steps=[STEP]))
    text = Page(path.read_text()).text
    for phrase in (
        "25.0% less parameter memory, -1.20 points of accuracy on the test set",
        METRICS["verdict"],
        "blocks.block3_0.mlp.fc1",
        "4 x 8 to 4 x 3",
        "sdt_v2_digits",
        "limits.max_accuracy_drop",
    ):
        assert phrase in text


def test_the_page_stands_alone(tmp_path):
    source = write_report(write_run(tmp_path / "run", steps=[STEP])).read_text()
    assert not {"script", "link", "img", "iframe"} & set(Page(source).tags)
    assert "http" not in source
    assert "@import" not in source
    assert "prefers-color-scheme: dark" in source


def test_names_are_text_and_not_markup(tmp_path):
    steps = [STEP | {"group": "<script>alert(1)</script>"}]
    source = write_report(write_run(tmp_path / "run", steps=steps)).read_text()
    assert "script" not in Page(source).tags


def test_a_plan_without_cuts_says_so(tmp_path):
    source = write_report(write_run(tmp_path / "run", steps=[])).read_text()
    assert "No cut passed the gate" in source


def test_limits_not_met_and_selection_from_train_are_marked(tmp_path):
    metrics = METRICS | {"met": False, "selection_from_train": True}
    source = write_report(write_run(tmp_path / "run", metrics=metrics, steps=[STEP])).read_text()
    assert 'class="verdict bad"' in source
    assert "images the model was trained on" in source


def test_without_a_test_set_the_selection_set_is_named():
    metrics = copy.deepcopy(METRICS)
    metrics["before"]["test"] = metrics["after"]["test"] = None
    assert headline(metrics).endswith("on the selection set")
    assert not any("test set" in row.measure for row in changes(metrics))


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = write_run(tmp_path / "run", steps=[STEP])
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


@pytest.mark.parametrize("missing", ["recipe.yaml", "plan.json", "metrics.json"])
def test_an_unfinished_run_has_no_report(tmp_path, missing):
    folder = write_run(tmp_path / "run", steps=[STEP])
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"no finished run: {missing} is missing"):
        write_report(folder)
    assert not (folder / "report.html").exists()

"""The page of a run is made from its files, stands alone, and leaves out what is not there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from primesvt.report import write_report

from .runs import FC1, metrics_of, step_of, whole_run, write_run

SECTIONS = ["outcome", "walk", "robustness", "blocks", "costs", "plan", "repeat", "asked"]


class Page(HTMLParser):
    """Text, tags and ids of a page; fails where tags do not close in order."""

    VOID = ("meta",)

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.text += " " * (tag in ("td", "th", "li"))

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def values(self, name, *, tag=None):
        return [
            found[name] for each, found in self.attributes if name in found and tag in (None, each)
        ]


def page(folder):
    return Page(write_report(folder).read_text())


@pytest.fixture(params=["prime", "allocate"])
def whole(request, tmp_path):
    return page(whole_run(tmp_path / "run", request.param))


def test_a_whole_run_has_every_section(whole):
    assert whole.values("id", tag="section") == SECTIONS
    assert whole.values("href", tag="a") == [f"#{name}" for name in SECTIONS]


def test_the_page_stands_alone(whole):
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(whole.tags)
    assert not re.search(r"https?:|@import|url\(|\bon\w+=", whole.source)
    assert whole.values("src") == []
    assert "prefers-color-scheme: dark" in whole.source
    assert "@media print" in whole.source


def test_every_plot_has_words_beside_it(whole):
    assert all(whole.values("aria-label", tag="svg"))
    drawn = [
        found for tag, found in whole.attributes if tag == "svg" and found.get("role") == "img"
    ]
    assert len(drawn) == 1
    assert whole.tags.count("figure") == whole.tags.count("figcaption") == 3
    assert "The same as a table" in whole.text


def test_wide_tables_can_be_reached_by_keyboard_and_are_named(whole):
    wide = [found for _, found in whole.attributes if found.get("class", "").startswith("scroll")]
    assert len(wide) == 6
    assert all(found["tabindex"] == "0" and found["role"] == "region" for found in wide)
    assert len({found["aria-label"] for found in wide}) == len(wide)


def test_every_figure_has_even_digits(whole):
    shown = re.sub(r"\s+", " ", whole.text.partition("Load it, and repeat it")[0])
    assert re.findall(r"\d\.\d{3}\S*", shown) == []
    assert (
        "-0.67 points on the selection set; at 95% confidence less than 1.66 points lost" in shown
    )


def test_the_page_says_what_was_traded_for_what(whole):
    for phrase in (
        "points of accuracy on the test set",
        "All limits are met.",
        "block4_0.mlp.fc1",
        "limits.max_accuracy_drop",
        "primesvt prune --recipe",
    ):
        assert phrase in whole.text


def test_distances_are_not_passed_off_as_accuracies(tmp_path):
    text = page(whole_run(tmp_path / "run", "allocate")).text
    assert "thousandths of a nat" in text
    assert "it is no accuracy" in text
    assert "thousandths" not in page(whole_run(tmp_path / "other", "prime")).text


def test_what_an_old_run_lacks_is_left_out(tmp_path):
    step = step_of(FC1, 80, 0.98, 400_000)
    del step["recovery"], step["drop"], step["bound"], step["parameter_bytes"]
    metrics = metrics_of()
    for name in ("drop", "bound", "limits", "bounded_by", "required_saving", "confirmation"):
        del metrics[name]
    found = page(write_run(tmp_path / "run", metrics=metrics, steps=[step]))
    assert found.values("id", tag="section") == [
        name for name in SECTIONS if name not in ("robustness", "blocks")
    ]


def test_names_are_text_and_not_markup(tmp_path):
    steps = [step_of("<script>alert(1)</script>", 80, 0.98, 400_000)]
    assert "script" not in page(write_run(tmp_path / "run", steps=steps)).tags


def test_a_plan_without_cuts_says_so(tmp_path):
    verdict = "Nothing was removed: no probed cut stays within the accuracy limit."
    found = page(write_run(tmp_path / "run", metrics=metrics_of(464_488, verdict=verdict)))
    assert "No cut passed the gate" in found.text
    assert verdict in found.text


def test_limits_not_met_and_selection_from_train_are_marked(tmp_path):
    metrics = metrics_of(met=False, required_saving=0.9, selection_from_train=True)
    found = page(write_run(tmp_path / "run", metrics=metrics, steps=[step_of(FC1, 8, 0.9, 400)]))
    assert 'class="verdict bad"' in found.source
    assert "images the model was trained on" in found.text


def test_folders_are_quoted_for_the_shell_and_for_python(tmp_path):
    text = page(write_run(tmp_path / "it's a run")).text
    assert f'primesvt.load("{tmp_path}/it\'s a run")' in text
    assert "--recipe '" in text


def test_a_run_of_python_has_no_command_to_repeat(tmp_path):
    text = page(write_run(tmp_path / "run", recipe="policy: prime\n", plan={"config": None})).text
    assert "primesvt prune" not in text
    assert "into=MyNet()" in text


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = whole_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    torch.manual_seed(1)
    assert write_report(folder, tmp_path / "elsewhere.html").read_bytes() == first


def test_an_unfinished_run_has_no_report(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"no finished run: metrics\.json is missing"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_bound_that_is_missing_says_nothing(tmp_path):
    folder = whole_run(tmp_path / "run", bound=None)
    assert "confidence less than" not in page(folder).text
    assert json.loads((folder / "metrics.json").read_text())["bound"] is None

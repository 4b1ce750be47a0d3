"""Several runs on one page: what differs is seen, what does not is out of the way."""

from __future__ import annotations

import pytest

from primesvt.report import write_comparison
from primesvt.report.comparison import compare_plans, compare_recipes
from primesvt.report.run_files import read_run
from primesvt.report.tradeoff_plot import comparison_plot

from .runs import FC1, costs, metrics_of, step_of, whole_run, write_run
from .test_page import Page


@pytest.fixture
def folders(tmp_path):
    return [
        whole_run(tmp_path / "walk", "prime"),
        whole_run(tmp_path / "together", "allocate"),
        whole_run(tmp_path / "missed", "allocate", met=False, required_saving=0.9),
    ]


def test_settings_that_differ_come_first(folders):
    found = compare_recipes([read_run(folder) for folder in folders])
    differing = [each for each in found if each.differs]
    assert [(each.name, each.values) for each in differing] == [
        ("policy", ("prime", "allocate", "allocate"))
    ]
    assert found[: len(differing)] == differing


def test_recipes_of_python_and_of_the_command_line_are_one_kind(tmp_path):
    nested = read_run(write_run(tmp_path / "a", recipe="method: {policy: prime}\nmodel: m\n"))
    plain = read_run(write_run(tmp_path / "b", recipe="policy: prime\n"))
    found = {each.name: each for each in compare_recipes([nested, plain])}
    assert not found["policy"].differs
    assert found["model"].values == ("m", "")


def test_plans_are_shares_of_kept_channels(folders):
    heat = compare_plans([read_run(folder) for folder in folders[:2]])
    rows = {
        (block.name, row.name): [cell.value for cell in row.cells]
        for block, row in zip(heat.rows, heat.rows[1:], strict=False)
        if row.cells and not block.cells
    }
    assert rows == {
        ("block4_0", "mlp.fc1"): ["20%", "10%"],
        ("block3_0", "mlp.fc1"): ["100%", "50%"],
        ("conv2a", "conv1"): ["50%", "100%"],
    }
    assert not heat.holes
    tones = {cell.value: cell.tone for row in heat.rows for cell in row.cells}
    assert tones == {"100%": 0.0, "50%": 0.5, "20%": 0.8, "10%": 0.9}


def test_a_group_that_a_model_does_not_have_is_a_hole(tmp_path):
    runs = [
        read_run(write_run(tmp_path / name, steps=[step_of(group, 80, 0.9, 400)]))
        for name, group in (("a", FC1), ("b", "other.fc"))
    ]
    heat = compare_plans(runs)
    assert heat.holes
    assert [[cell.value for cell in row.cells] for row in heat.rows if row.cells] == [
        ["50%", ""],
        ["", "50%"],
    ]


def test_each_run_is_one_point_with_its_interval(folders):
    runs = [read_run(folder) for folder in folders]
    plot = comparison_plot(runs, ["walk", "together", "missed"])
    assert [mark.label for mark in plot.marks] == ["1", "2", "3"]
    assert len({mark.kind for mark in plot.marks}) == 3
    assert all(mark.whisker for mark in plot.marks)
    for run, mark in zip(runs, plot.marks, strict=True):
        shown = plot.x.low + mark.x / 100 * (plot.x.high - plot.x.low)
        assert shown == pytest.approx(100 * run.metrics["saving"], abs=1e-3)
    kinds = [line.kind.split()[-1] for line in plot.segments]
    assert kinds == ["way", "way", "jump", "jump"]


def test_scores_and_accuracies_share_no_plot(tmp_path):
    scores = {"before": costs(9, None, None, score=1.0), "after": costs(8, None, None, score=0.9)}
    write_run(tmp_path / "a", metrics=metrics_of(**scores))
    runs = [read_run(tmp_path / "a"), read_run(write_run(tmp_path / "b"))]
    assert comparison_plot(runs, ["a", "b"]) is None
    found = Page(write_comparison([run.path for run in runs], tmp_path / "out.html").read_text())
    assert found.values("id", tag="section") == ["figures", "recipes"]


def test_the_page_stands_alone_and_names_every_run(folders, tmp_path):
    found = Page(write_comparison(folders, tmp_path / "out.html").read_text())
    assert found.values("id", tag="section") == ["figures", "trade", "plans", "recipes"]
    assert not {"script", "link", "img"} & set(found.tags)
    for phrase in ("walk", "together", "missed", "limits not met", "-1.20 points, before 98.67%"):
        assert phrase in found.text
    tinted = [kind for kind in found.values("class", tag="td") if kind == "differs"]
    assert len(tinted) == 2


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / name / "run") for name in ("mild", "strict")]
    text = Page(write_comparison(folders, tmp_path / "out.html").read_text()).text
    assert "mild/run" in text
    assert "strict/run" in text


def test_one_run_or_the_same_run_is_no_comparison(folders, tmp_path):
    with pytest.raises(ValueError, match="two runs or more; got 1"):
        write_comparison(folders[:1], tmp_path / "out.html")
    with pytest.raises(ValueError, match="is given twice"):
        write_comparison([*folders, folders[0] / "."], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()

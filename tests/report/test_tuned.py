"""A fine-tuning of the pruned network is shown where its record lies."""

from __future__ import annotations

import json

from primesvt.report import write_comparison, write_report
from primesvt.report.run_files import read_run
from primesvt.report.summary import tuning

from .runs import score, write_run
from .test_page import Page

RECORD = {
    "recipe": {"epochs": 7, "learning_rate": 5e-4, "distillation": 0.5},
    "kept_epoch": 6,
    "selection": score(0.986),
    "test": score(0.9834),
    "notes": ["2 processes shared every batch."],
}


def tuned_run(tmp_path, record):
    folder = write_run(tmp_path / "run")
    (folder / "finetuned").mkdir()
    (folder / "finetuned" / "record.json").write_text(json.dumps(record))
    return folder


def test_pruned_and_fine_tuned_stand_side_by_side(tmp_path):
    folder = tuned_run(tmp_path, RECORD)
    found = tuning(read_run(folder))
    row = found.rows[0]
    assert (row.name, row.before, row.pruned, row.tuned, row.change) == (
        "test set of 450",
        "98.67%",
        "97.47%",
        "98.34%",
        "-0.33 points",
    )
    page = Page(write_report(folder).read_text())
    assert "tuned" in page.values("id", tag="section")
    assert "7 epochs, epoch 6 kept, learning rate 0.0005, distillation 0.5" in page.text
    assert "2 processes" in page.text


def test_what_the_record_itself_measured_comes_first(tmp_path):
    own = {"unpruned": {"test": score(0.99)}, "before": {"test": score(0.95), "selection": None}}
    (row,) = tuning(read_run(tuned_run(tmp_path, {**RECORD, **own}))).rows
    assert (row.before, row.pruned, row.change) == ("99.00%", "95.00%", "-0.66 points")


def test_epochs_begin_before_the_first(tmp_path):
    record = {**RECORD, "loss": [0.5, 0.25], "selection_accuracy": [0.9, 0.95, 0.96]}
    folder = tuned_run(tmp_path, {**record, "kept_epoch": 0})
    found = tuning(read_run(folder))
    assert found.epochs == ((0, "", "90.00%"), (1, "0.500", "95.00%"), (2, "0.250", "96.00%"))
    text = Page(write_report(folder).read_text()).text
    assert "no epoch was better than the network before" in text
    assert "Epoch by epoch" in text


def test_it_is_in_a_comparison(tmp_path):
    runs = [tuned_run(tmp_path, RECORD), write_run(tmp_path / "other")]
    text = Page(write_comparison(runs, tmp_path / "out.html").read_text()).text
    assert "Fine-tuned, test set of 450" in text
    assert "98.34%" in text
    assert (
        text.index("Top-1, selection") < text.index("Fine-tuned, test") < text.index("Parameters")
    )


def test_a_record_without_an_accuracy_is_left_out(tmp_path):
    folder = tuned_run(tmp_path, {"recipe": {"epochs": 7}, "test": None})
    assert tuning(read_run(folder)) is None
    assert "tuned" not in Page(write_report(folder).read_text()).values("id", tag="section")

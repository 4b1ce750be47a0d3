"""A run folder is read as it is, and damage is named."""

from __future__ import annotations

import pytest

from primesvt.report import write_report
from primesvt.report.run_files import read_run

from .runs import FC1, FC3, metrics_of, probe, reference, step_of, whole_run, write_run


def test_a_bare_folder_of_an_old_version_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "run", steps=[step_of(FC1, 80, 0.98, 400_000)]))
    assert (run.probes, run.reference, run.tuned) == ((), {}, None)
    assert run.groups == [FC1]


def test_settings_have_one_name_wherever_they_stand(tmp_path):
    nested = read_run(write_run(tmp_path / "a", recipe="limits: {max_accuracy_drop: 2}\n"))
    plain = read_run(write_run(tmp_path / "b", recipe="max_accuracy_drop: 2\n"))
    assert nested.settings == plain.settings == {"max_accuracy_drop": 2}


def test_a_line_that_a_kill_cut_short_is_no_probe(tmp_path):
    folder = write_run(tmp_path / "run", probes=[reference(), probe(0.9, 0.1, cuts={FC3: 1})])
    with (folder / "sensitivity.jsonl").open("a") as file:
        file.write('{"kind": "walk", "cu')
    assert len(read_run(folder).probes) == 2


@pytest.mark.parametrize("missing", ["recipe.yaml", "plan.json", "metrics.json"])
def test_an_unfinished_run_is_no_run(tmp_path, missing):
    folder = write_run(tmp_path / "run")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"no finished run: {missing} is missing"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.json", "{"), ("plan.json", "[]"), ("recipe.yaml", "a: [")],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = write_run(tmp_path / "run", metrics=metrics_of())
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_run(folder)


@pytest.mark.parametrize("line", ["{}", "7", '{"kind": 1}', "{"])
def test_a_damaged_probe_is_named(tmp_path, line):
    folder = write_run(tmp_path / "run", probes=[reference()])
    with (folder / "sensitivity.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is no probe"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.json", '"met": true', '"met": [[[]]]'),
        ("metrics.json", '"saving": ', '"saving": "x", "_": '),
        ("metrics.json", '"before": {', '"before": [], "_": {'),
        ("metrics.json", '"accuracy": ', '"accuracy": null, "_": '),
        ("metrics.json", '"data": ', '"_": '),
        ("plan.json", '"before": [', '"before": [0, '),
        ("plan.json", '"steps": [', '"steps": 3, "_": ['),
        ("sensitivity.jsonl", '"cuts": {', '"cuts": [], "_": {'),
        ("sensitivity.jsonl", '"accuracy": ', '"accuracy": 1e999, "_": '),
        ("sensitivity.jsonl", '"kind": "', '"kind": [], "_": "'),
    ],
)
def test_values_of_another_type_are_named(tmp_path, name, old, new):
    path = whole_run(tmp_path / "run", "prime") / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=name) as caught:
        read_run(path.parent)
    assert "\n" not in str(caught.value)


def test_a_page_shows_no_control_characters(tmp_path):
    folder = whole_run(tmp_path / "run", "prime")
    (folder / "recipe.yaml").write_text('model: "a\\e[2Jb\\u202Ec<script>"\ndata: x\n')
    page = write_report(folder).read_text()
    assert "a\\x1b[2Jb\\u202ec&lt;script&gt;" in page
    assert not {"\x1b", "\u202e"} & set(page)


def test_costs_that_are_not_counted_are_told_so(tmp_path):
    """As of a network whose neurons are no modules that hold their state."""
    metrics = metrics_of()
    for side in ("before", "after"):
        metrics[side] |= {
            "membrane_bytes_per_sample": None,
            "energy": {"operations": 1e-6, "with_memory": None},
        }
    folder = write_run(tmp_path / "run", metrics=metrics)
    assert read_run(folder).metrics["before"]["membrane_bytes_per_sample"] is None
    assert write_report(folder).read_text().count("not counted") >= 2

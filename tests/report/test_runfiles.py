"""A run folder is read as it is, and damage is named."""

from __future__ import annotations

import pytest

from primesvt.report.run_files import read_run

from .runs import FC1, FC3, metrics_of, probe, reference, step_of, write_run


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

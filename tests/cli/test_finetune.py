"""``primesvt finetune`` after ``primesvt prune``, for a person and for a machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ..bars import write_bars

QUICK = ("--batch-size", "16", "--learning-rate", "0.005")


@pytest.fixture(scope="module")
def _run(tmp_path_factory):
    from primesvt.cli import main

    folder = tmp_path_factory.mktemp("pruned")
    words = ["prune", "sdt_v2_digits", "--data", str(write_bars(folder / "bars")), "--json"]
    words += ["--preset", "paper", "--include", "*.block4_0.mlp.fc1", "--rates", "0.9"]
    words += ["--max-accuracy-drop", "10", "--batch-size", "16", "--out", str(folder / "run")]
    assert main(words) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def run(_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(_run, tmp_path / "run")


def test_it_says_what_was_gained_and_where_it_lies(primesvt):
    finished = primesvt("finetune", "run", "--epochs", "2", *QUICK)
    assert finished.code == 0
    for phrase in (
        "Unpruned", "Pruned", "Fine-tuned", "Top-1, test set of 20", "95% interval",
        "Fine-tuned for 2 epochs in", "is the best.", "primesvt.load('run/finetuned')",
        "The report: run/report.html",
    ):  # fmt: skip
        assert phrase in finished.out
    assert max(len(line.rstrip()) for line in finished.out.splitlines()) <= 80

    record = json.loads(Path("run/finetuned/record.json").read_text())
    again = primesvt("finetune", "run", "--epochs", "2", *QUICK, "--json")
    assert again.json == {"out": "run/finetuned", **record}
    evaluated = primesvt(
        "evaluate", "run/finetuned", "--data", record["recipe"].get("data", _data()), "--json"
    )
    assert evaluated.json["accuracy"] == record["test"]["accuracy"]


def _data():
    import yaml

    return yaml.safe_load(Path("run/recipe.yaml").read_text())["data"]


def test_the_report_shows_what_fine_tuning_reached(primesvt):
    page = Path("run/report.html")
    assert "After fine-tuning" not in page.read_text()
    primesvt("finetune", "run", "--epochs", "1", *QUICK, "--json")
    record = json.loads(Path("run/finetuned/record.json").read_text())
    tuned = page.read_text()
    section = tuned.partition('id="tuned"')[2].partition("</section>")[0]
    for part in ("test", "selection"):
        assert f"{record[part]['accuracy']:.2%}" in section
    assert "after fine-tuning" in tuned.partition("<main>")[0]


def test_elsewhere_it_leaves_the_report_as_it_was(primesvt):
    page = Path("run/report.html")
    page.write_text("as it was")
    finished = primesvt("finetune", "run", "--epochs", "1", *QUICK, "--out", "out")
    assert "The report" not in finished.out and page.read_text() == "as it was"
    primesvt("finetune", "run", "--epochs", "1", *QUICK, "--out", "run/../run/finetuned")
    assert page.read_text() != "as it was"


def test_flags_stand_in_place_of_the_recipe(primesvt):
    Path("r.yaml").write_text("epochs: 1\nbatch_size: 32\naugmentation: {shift: 1}\n")
    words = ("--recipe", "r.yaml", "--batch-size", "16", "--distillation", "0", "--out", "out")
    recipe = primesvt("finetune", "run", *words, "--json").json["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["distillation"]) == (1, 16, 0)
    assert recipe["augmentation"]["shift"] == 1 and recipe["augmentation"]["rotate"] == 0
    assert recipe["learning_rate"] == 0.0015  # a tenth of the training's


def test_data_that_moved(primesvt, tmp_path):
    write_bars(tmp_path / "elsewhere")
    words = ("--data", "elsewhere", "--epochs", "1", *QUICK, "--json")
    found = primesvt("finetune", "run", *words).json
    assert found["data"].startswith("elsewhere: train 64")


def test_weights_that_stay_as_they_were(primesvt):
    words = ("finetune", "run", "--epochs", "1", *QUICK)
    assert "; epoch 1 is the best." in primesvt(*words).out
    record = Path("run/finetuned/record.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"kept_epoch": 0}))
    out = " ".join(primesvt(*words).out.split())
    assert "none is better on the selection images, so the pruned weights stay." in out


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        (["gone"], ["'gone' is no finished run", "recipe.yaml"]),
        (["run", "--recipe", "gone.yaml"], ["no recipe file 'gone.yaml'"]),
        (["run", "--distillation", "2"], ["distillation: 2.0", "less than or equal to 1"]),
        (["run", "--epochs", "0"], ["epochs: 0"]),
        (["run", "--device", "cuda:99"], ["no device 'cuda:99'"]),
        (["run", "--data", "nowhere"], ["nowhere"]),
        (["run", "--teacher", "gone.pth"], ["gone.pth"]),
        (["run", "--out", "run/model"], ["run/model", "holds something else"]),
        (["run", "--save-every", "-1"], ["save_every is -1"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(primesvt, words, phrases):
    before = sorted(Path("run").rglob("*"))
    finished = primesvt("finetune", *words)
    assert finished.code == 1
    assert finished.err.count("\n") == 1 and finished.out == ""
    assert all(phrase in finished.err for phrase in phrases), finished.err
    assert sorted(Path("run").rglob("*")) == before


def test_a_flag_that_is_not_allowed_exits_with_2(primesvt):
    finished = primesvt("finetune", "run", "--precision", "fp16")
    assert finished.code == 2 and "bf16" in finished.err


def test_an_interrupt_goes_on(primesvt, monkeypatch):
    from primesvt.training import loop

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.TrainingLoop, "_update", interrupt)
    finished = primesvt("finetune", "run", "--epochs", "1", *QUICK)
    assert finished.code == 130 and "goes on where it was stopped" in finished.err
    monkeypatch.undo()


def test_of_several_processes_the_first_speaks(primesvt, monkeypatch):
    words = ("finetune", "run", "--epochs", "1", *QUICK, "--out", "out")
    spoken = primesvt(*words).out
    monkeypatch.setenv("RANK", "1")
    assert spoken and primesvt(*words).out == "" and primesvt(*words, "--json").out == ""
    Path("run/report.html").unlink()
    primesvt(*words[:-2])
    assert not Path("run/report.html").exists()
    assert "process 1: " in primesvt("finetune", "gone").err

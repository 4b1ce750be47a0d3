"""A model is measured on its own data, or on data that were named; never on others in silence."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import TensorDataset

import primesvt
from primesvt import load
from primesvt.checkpoint.load import own_data
from primesvt.cli import main
from primesvt.evaluation import settings
from primesvt.models import create_model, to_official

RECIPE = """
model: sdt_v2_small
model_options:
  {time_steps: 1, embed_dims: [8, 8, 16, 16], num_heads: 4, conv_depths: [0, 1, 1],
   depths: [1, 1], strides: [2, 2, 2, 2, 1]}
data: data/tiny
epochs: 1
batch_size: 20
warmup_epochs: 0
"""
PRUNE = ("--include", "*.mlp.fc1", "--rates", "0.25", "--policy", "uniform", "--recovery", "none")
LIMITS = ("--max-accuracy-drop", "9", "--batch-size", "40", "--no-lossless", "--no-verify")


def _write(path: Path, count: int) -> None:
    """Ten classes of colour pictures of 32x32 pixels, as CIFAR-10 has them."""
    rng = np.random.default_rng(count)
    rows = []
    for label in [number % 10 for number in range(count)]:
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[3 * label : 3 * label + 3, :, label % 3] = 250
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    labels = [number % 10 for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": rows, "label": labels}), path)


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    """A trained model and a pruned one, in a folder with their data."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        _write(Path("data/tiny/train.parquet"), 100)
        _write(Path("data/tiny/test.parquet"), 40)
        Path("tiny.yaml").write_text(RECIPE)
        assert main(["train", "--recipe", "tiny.yaml", "--out", "trained", "--json"]) == 0
        assert main(["prune", "trained", *PRUNE, *LIMITS, "--out", "run", "--json"]) in (0, 3)
    return place


@pytest.fixture(autouse=True)
def made(_made, tmp_path, monkeypatch):
    shutil.copytree(_made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_trained_model_and_a_run_are_measured_on_their_own_data(primesvt):
    record = json.loads(Path("trained/record.json").read_text())
    for name in ("trained", "trained/model"):
        found = primesvt("evaluate", name, "--json").json
        assert found["data_spec"] == "data/tiny"
        assert found["data"] == record["data"]
        assert (found["images"], found["accuracy"]) == (40, record["test"]["accuracy"])
        assert len(found["interval"]) == 2 and found["guessed_settings"] == {}
    assert yaml.safe_load(Path("run/recipe.yaml").read_text())["data"] == "data/tiny"
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert (
        primesvt("evaluate", "run", "--json").json["accuracy"]
        == (metrics["after"]["test"]["accuracy"])
    )
    said = " ".join(primesvt("evaluate", "run").out.split())
    assert "Data: data/tiny, as run/recipe.yaml says." in said


def test_prune_says_on_which_data(primesvt):
    finished = primesvt("prune", "trained", *PRUNE, *LIMITS, "--out", "run", "--json")
    assert finished.code in (0, 3)  # the run is there already, and of the same recipe
    assert finished.json["data_spec"] == "data/tiny"
    assert finished.json["data"].startswith("tiny: train ")


def test_what_is_made_of_a_run_keeps_its_data(primesvt):
    words = ("--epochs", "1", "--batch-size", "20", "--json")
    record = primesvt("finetune", "run", *words).json
    found = primesvt("evaluate", "run/finetuned", "--json").json
    assert (found["data_spec"], found["accuracy"]) == ("data/tiny", record["test"]["accuracy"])
    shutil.copytree("data/tiny", "copy")
    primesvt("finetune", "run", *words, "--out", "elsewhere", "--data", "copy")
    assert primesvt("evaluate", "elsewhere", "--json").json["data_spec"] == "copy"
    assert primesvt("export", "run", "--format", "hub", "--json").code == 0
    assert primesvt("evaluate", "run/export/hub", "--json").json["data_spec"] == "data/tiny"
    shown = primesvt("inspect", "run", "--costs", "--data", "digits")
    assert (shown.code, "the model reads 3x32x32" in shown.err) == (1, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "trained"], "trained/recipe.yaml"),
        (["prune", "trained", "--out", "new"], "trained/recipe.yaml"),
        (["evaluate", "run"], "run/recipe.yaml"),
        (["finetune", "run"], "run/recipe.yaml"),
        (["export", "run", "--format", "hub"], "run/recipe.yaml"),
    ],
)
def test_data_that_are_gone_are_named(primesvt, words, told):
    Path("data/tiny").rename("moved")
    finished = primesvt(*words)
    assert finished.code == 1 and finished.out == "" and finished.err.count("\n") == 1
    for phrase in ("'data/tiny'", told, str(Path.cwd()), "--data"):
        assert phrase in finished.err
    assert not Path("new").exists()


def test_a_relative_path_counts_from_the_working_directory(primesvt, monkeypatch):
    monkeypatch.chdir("trained")
    assert "'data/tiny'" in primesvt("evaluate", "../run").err
    Path("data").symlink_to("../data")
    assert primesvt("evaluate", "../run").code == 0


@pytest.mark.parametrize("command", ["evaluate", "prune", "export"])
def test_nothing_is_guessed_for_a_file_of_weights(primesvt, command):
    torch.save({"model": to_official(create_model("sdt_v2_small"))}, "weights.pth")
    finished = primesvt(command, "weights.pth")
    assert finished.code == 1 and finished.err.count("\n") == 1
    assert "which data this model belongs to" in finished.err and "--data" in finished.err


def test_weights_that_answer_nothing_stop_at_their_guessed_settings(primesvt, monkeypatch):
    monkeypatch.setattr(settings, "ROUNDS", ((16, 2),))
    model = create_model("spikformer_small", embed_dim=32, depth=1, num_heads=4)
    torch.save({"model": to_official(model)}, "weights.pth")
    _write(Path("data/more/test.parquet"), 400)
    finished = primesvt("evaluate", "weights.pth", "--data", "data/more/test.parquet")
    last = finished.err.splitlines()[-1]
    assert finished.code == 1 and last.startswith("primesvt: weights.pth: whatever is tried for")
    assert "images are right at best, and guessing gives 10.0%" in last


def test_data_that_do_not_fit_are_refused_by_every_command(primesvt, tmp_path):
    for name, mode, size in (("grey", "L", (40, 40)), ("small", "RGB", (16, 16))):
        for label in range(10):
            folder = tmp_path / name / str(label)
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new(mode, size, color=label).save(folder / f"{number}.png")
    refusals = {
        "digits": "the model reads 3x32x32",
        str(tmp_path / "grey"): "images of grey are grey, but the model reads 3 channels",
        str(tmp_path / "small"): "at most 16x16 pixels, but the model reads 32x32",
    }
    commands = (
        ["evaluate", "trained"],
        ["prune", "trained", "--out", "new"],
        ["finetune", "run", "--out", "new"],
        ["export", "run", "--format", "hub"],
        ["inspect", "run", "--costs"],
        ["train", "--recipe", "tiny.yaml", "--out", "new"],
    )
    for data, phrase in refusals.items():
        for words in commands:
            finished = primesvt(*words, "--data", data)
            assert (finished.code, phrase in finished.err) == (1, True), (words, finished.err)
            assert finished.err.count("\n") == 1 and not Path("new").exists()


def test_the_python_functions_refuse_the_same():
    model = primesvt.load("trained")
    with pytest.raises(ValueError, match="the model reads 3x32x32"):
        primesvt.prune(model, data="digits")
    grey = TensorDataset(torch.rand(30, 1, 32, 32), torch.arange(30) % 10)
    with pytest.raises(ValueError, match=r"samples of 1 channel .* but the model reads 3"):
        primesvt.prune(model, data=grey)
    with pytest.raises(ValueError, match="the model reads 3x32x32"):
        primesvt.finetune("run", data="digits")
    named = TensorDataset(torch.rand(30, 3, 32, 32), torch.arange(30) % 10)
    named.classes = ["cat", "dog"]
    with pytest.raises(ValueError, match="2 classes, but the model predicts 10"):
        primesvt.prune(model, data=named)


def test_models_of_the_registry_that_read_digits_have_the_digits(primesvt):
    assert primesvt("evaluate", "sdt_v2_digits", "--json").json["data_spec"] == "digits"
    assert own_data("sdt_v2_digits").spec == own_data("qkformer_digits").spec == "digits"
    assert own_data("sdt_v2_small") is None
    assert own_data(create_model("sdt_v2_digits")).spec == "digits"
    assert own_data(create_model("sdt_v2_small")) is own_data(torch.nn.Linear(1, 1)) is None
    torch.save(to_official(create_model("sdt_v2_digits")), "like-digits.pth")
    assert own_data("like-digits.pth") is own_data(load("like-digits.pth")) is None


def test_a_run_is_measured_on_its_own_split():
    """One labelled set is split by the run's seed; with another, the test set was selected on."""
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    recipe["run"] |= {"seed": 5, "selection_from_train": True}
    Path("run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = own_data("run")
    assert (found.spec, found.seed, found.selection_from_train) == ("data/tiny", 5, True)
    Path("trained/recipe.yaml").write_text("data: data/tiny\nepochs: 3\nseed: 7\n")
    assert own_data("trained").seed == 0


def test_a_run_in_python_remembers_where_its_data_lie(tmp_path):
    result = primesvt.prune(
        primesvt.load("trained"),
        data="data/tiny",
        include=["*.mlp.fc1"],
        rates=[0.25],
        policy="uniform",
        recovery="none",
        lossless=False,
        verify=False,
        seed=3,
    )
    result.save("python")
    found = own_data("python")
    assert (found.spec, found.seed, found.told) == ("data/tiny", 3, "python/recipe.yaml")


def test_a_training_of_an_older_version_has_a_record_alone():
    Path("trained/recipe.yaml").unlink()
    found = own_data("trained")
    assert (found.spec, found.told) == ("data/tiny", "trained/record.json")


def test_foreign_files_beside_a_model_say_nothing():
    Path("trained/record.json").write_text("[1]")
    Path("trained/recipe.yaml").write_text("a: [")
    assert own_data("trained") is None
    Path("trained/record.json").write_text('{"recipe": {"epochs": 1}, "run": "gone"}')
    assert own_data("trained") is None

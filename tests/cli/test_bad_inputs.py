"""A user's mistake gets one clear line on stderr, exit code 1, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from primesvt.models import create_model, to_official

PRUNE = ("prune", "sdt_v2_digits")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every broken file that the table below names."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "cut.safetensors").write_bytes(_whole(folder / "whole.safetensors")[:-100])
    torch.save({"head.weight": torch.ones(100)}, folder / "whole.pth")
    (folder / "cut.pth").write_bytes((folder / "whole.pth").read_bytes()[:-100])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("not a checkpoint")
    weights = to_official(create_model("sdt_v2_small"))
    torch.save({"model": weights, "best": Fraction(3, 4)}, folder / "objects.pth")
    torch.save({"epoch": 3}, folder / "no-weights.pth")
    torch.save({"head.weight": torch.ones(10, 3)}, folder / "other-network.pth")
    (folder / "unknown-field.yaml").write_text("model: sdt_v2_digits\nlimits: {max_drop: 1}\n")
    (folder / "bad-value.yaml").write_text("model: sdt_v2_digits\nrun: {batch_size: 0}\n")
    (folder / "broken.yaml").write_text("model: [")
    (folder / "list.yaml").write_text("- 1\n")
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (folder / "bomb.yaml").write_text(f"a0: &a0 [x]\n{bomb}")
    (folder / "nowhere").mkdir()
    (folder / "a-file").write_text("")
    _images(folder / "two-classes", ("cat", "dog"))
    _images(folder / "damaged", map(str, range(10)))
    (folder / "damaged" / "val" / "3" / "0.png").write_bytes(b"")
    _images(folder / "empty-class", map(str, range(10)))
    (folder / "empty-class" / "val" / "new").mkdir()
    return folder


def _whole(path: Path) -> bytes:
    save_file(to_official(create_model("sdt_v2_small")), path)
    return path.read_bytes()


def _images(root: Path, classes) -> None:
    for name in classes:
        (root / "val" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (8, 8), color=20 * index).save(root / "val" / name / f"{index}.png")


MISTAKES = {
    "unknown model, with the nearest": (
        ["prune", "sdt_v2_digit"],
        ["unknown model 'sdt_v2_digit'", "sdt_v2_digits"],
    ),
    "no model": (["prune", ""], ["no model given"]),
    "no bundled weights": (["prune", "sdt_v2_15m"], ["sdt_v2_15m has no weights"]),
    "checkpoint not there": (["evaluate", "gone.pth"], ["no checkpoint file 'gone.pth'"]),
    "checkpoint cut short": (["inspect", "../inputs/cut.pth"], ["cut.pth", "cut short"]),
    "safetensors cut short": (["prune", "../inputs/cut.safetensors"], ["cut short"]),
    "empty checkpoint": (["inspect", "../inputs/empty.pth"], ["(0 bytes)", "cut short"]),
    "text as checkpoint": (["inspect", "../inputs/text.pth"], ["text.pth", "no checkpoint"]),
    "pickled objects": (
        ["inspect", "../inputs/objects.pth"],
        ["fractions.Fraction", "safetensors"],
    ),
    "no state dict": (["inspect", "../inputs/no-weights.pth"], ["no state dict", "'epoch'"]),
    "another network": (
        ["inspect", "../inputs/other-network.pth"],
        ["other-network.pth", "fit no family"],
    ),
    "no such setting": (
        ["inspect", "sdt_v2_digits", "--override", "heads=3"],
        ["unknown setting 'heads'; known: time_steps, num_heads"],
    ),
    "no such setting of the family": (
        ["prune", "sdt_v2_small", "--override", "dvs_mode=true"],
        ["dvs_mode"],
    ),
    "no setting at all": (["evaluate", "sdt_v2_digits", "--override", "tau"], ["NAME=VALUE"]),
    "another family": (
        ["inspect", "../inputs/other-network.pth", "--family", "sdt_v2"],
        ["do not fit the family sdt_v2", "missing"],
    ),
    "no such family": (
        ["inspect", "../inputs/other-network.pth", "--family", "sdt_v9"],
        ["unknown family 'sdt_v9'; known: qkformer"],
    ),
    "no model folder": (["evaluate", "../inputs/nowhere"], ["nowhere"]),
    "no data": ([*PRUNE, "--data", "gone"], ["no data set, file or folder 'gone'"]),
    "class count": (
        [*PRUNE, "--data", "../inputs/two-classes"],
        ["2 classes", "the model predicts 10"],
    ),
    "damaged image": ([*PRUNE, "--data", "../inputs/damaged"], ["cannot read the image", "0.png"]),
    "empty class": ([*PRUNE, "--data", "../inputs/empty-class"], ["new", "empty"]),
    "recipe not there": (["prune", "--recipe", "gone.yaml"], ["gone.yaml"]),
    "recipe no YAML": (["prune", "--recipe", "../inputs/broken.yaml"], ["not a YAML file"]),
    "recipe no mapping": (["prune", "--recipe", "../inputs/list.yaml"], ["holds no recipe"]),
    "recipe field": (
        ["prune", "--recipe", "../inputs/unknown-field.yaml"],
        ["max_drop: unknown field"],
    ),
    "recipe value": (["prune", "--recipe", "../inputs/bad-value.yaml"], ["batch_size: 0"]),
    "training recipe not there": (["train", "--recipe", "gone.yaml"], ["gone.yaml"]),
    "negative limit": ([*PRUNE, "--max-accuracy-drop", "-1"], ["max_accuracy_drop", "-1"]),
    "limit not a number": ([*PRUNE, "--max-accuracy-drop", "nan"], ["max_accuracy_drop", "nan"]),
    "limit above the accuracy": ([*PRUNE, "--max-accuracy-drop", "99.9"], ["99.9"]),
    "percent for a fraction": ([*PRUNE, "--min-memory-saving", "25"], ["25", "0.25"]),
    "size without a unit": ([*PRUNE, "--max-parameter-memory", "lots"], ["lots"]),
    "no such group": ([*PRUNE, "--include", "nothing.*"], ["nothing.*"]),
    "no such device": ([*PRUNE, "--device", "abacus"], ["abacus"]),
    "no batch": ([*PRUNE, "--batch-size", "0"], ["batch_size", "0"]),
    "no batch to evaluate": (
        ["evaluate", "sdt_v2_digits", "--batch-size", "0"],
        ["batch_size is 0"],
    ),
    "negative seed": ([*PRUNE, "--seed", "-1"], ["seed", "-1"]),
    "negative seed to evaluate": (["evaluate", "sdt_v2_digits", "--seed", "-1"], ["seed is -1"]),
    "a CPU of many": ([*PRUNE, "--device", "cpu:99"], ["no device 'cpu:99'"]),
    "no memory at all": (["evaluate", "sdt_v2_digits", "--device", "meta"], ["no device 'meta'"]),
    "endless time": ([*PRUNE, "--time-steps", "1" + "0" * 20], ["time_steps"]),
    "endless rate": (["finetune", "gone", "--learning-rate", "inf"], ["learning_rate", "finite"]),
    "no repository": (
        ["export", "sdt_v2_digits", "--format", "hub", "--push", "../../x"],
        ["'../../x'", "NAME/MODEL"],
    ),
    "export to a read-only place": (
        ["export", "sdt_v2_digits", "--out", "/proc/x/m.onnx"],
        ["cannot write to folder '/proc/x/m.onnx'"],
    ),
    "run in a read-only place": (
        [*PRUNE, "--out", "/proc/x"],
        ["cannot write to folder '/proc/x'"],
    ),
    "a pipe as recipe": (["prune", "--recipe", "../inputs/pipe"], ["is a pipe, no file"]),
    "aliases without end": (["prune", "--recipe", "../inputs/bomb.yaml"], ["aliases"]),
    "folder not writable": ([*PRUNE, "--out", "../inputs/a-file/run"], ["cannot write", "a-file"]),
    "no such run": ([*PRUNE, "--from", "gone"], ["gone"]),
    "no such plan": (["apply", "gone", "sdt_v2_digits", "--out", "small"], ["gone"]),
    "preset and its contrary": (
        [*PRUNE, "--preset", "paper", "--gate", "bound"],
        ["--preset paper", "gate"],
    ),
}


@pytest.mark.parametrize(("words", "phrases"), MISTAKES.values(), ids=list(MISTAKES))
def test_one_clear_line_and_nothing_written(primesvt, inputs, tmp_path, words, phrases):
    shutil.copytree(inputs, tmp_path / "inputs")
    os.mkfifo(tmp_path / "inputs" / "pipe")
    finished = primesvt(*words)
    assert finished.code == 1
    assert finished.out == ""
    assert finished.err.startswith("primesvt: ")
    assert finished.err.count("\n") == 1
    for phrase in phrases:
        assert phrase in finished.err
    assert list(Path().rglob("*")) == []

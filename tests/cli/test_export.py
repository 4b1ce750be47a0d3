"""``primesvt export`` for a person and for a machine."""

from __future__ import annotations

import sys

import pytest

from primesvt.checkpoint.folder import save_model

from ..exporting.conftest import run, tiny

__all__ = ["run"]


@pytest.fixture
def saved(tmp_path):
    save_model(tiny(), tmp_path / "tiny" / "model")
    return tmp_path / "tiny"


def test_a_person_reads_agreement_and_sizes(primesvt, run, tmp_path):
    finished = primesvt("export", run, "--out", tmp_path / "a.onnx")
    assert finished.code == 0
    out = finished.out
    assert out.startswith("onnx (opset 18): float32 [batch, 1, 8, 8] to float32 [batch, classes]\n")
    assert "Same prediction" in out
    assert "100.00%" in out
    assert "Before pruning" in out
    assert out.endswith(f"The file: {tmp_path / 'a.onnx'}\n")
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_eight_bits_are_told(primesvt, saved):
    finished = primesvt("export", saved, "--weight-bits", "8", "--agreement", "0.5")
    assert finished.code == 0
    told = "Weights: 11 of 12 layers in 8 bits; 1 in float32, as they are too small to gain by it."
    assert told in " ".join(finished.out.split())
    assert (saved / "export" / "model-8bit.onnx").is_file()


def test_a_machine_reads_json(primesvt, saved):
    finished = primesvt("export", saved, "--format", "torch-export", "--images", "9", "--json")
    assert finished.code == 0
    assert finished.json["format"] == "torch-export"
    assert finished.json["agreement"]["samples"] == 9
    assert finished.json["path"] == str(saved / "export" / "model.pt2")


def test_a_folder_for_the_hub(primesvt, saved):
    finished = primesvt("export", saved, "--format", "hub", "--images", "9")
    assert finished.code == 0
    assert finished.out.endswith(f"The model: {saved / 'export' / 'hub'}\n")
    again = primesvt("export", saved, "--format", "hub")
    assert again.code == 1
    assert "holds something else" in again.err


@pytest.mark.parametrize(
    ("words", "code", "phrase"),
    [
        (["nowhere"], 1, "unknown model 'nowhere'"),
        (["sdt_v2_small"], 1, "has no weights in the package"),
        (["sdt_v2_digits", "--agreement", "99"], 1, "is a share of predictions"),
        (["sdt_v2_digits", "--push", "me/it"], 1, "only the format hub"),
        (["sdt_v2_digits", "--weight-bits", "4"], 2, "--weight-bits"),
        (["sdt_v2_digits", "--format", "tflite"], 2, "torch-export"),
        (["sdt_v2_digits", "--weight-bits", "8", "--format", "hub"], 1, "use the format onnx"),
    ],
)
def test_mistakes_are_one_line(primesvt, words, code, phrase):
    finished = primesvt("export", *words)
    assert finished.code == code
    assert phrase in finished.err
    assert code == 2 or len(finished.err.splitlines()) == 1


def test_what_does_not_agree_fails(primesvt, saved, monkeypatch):
    monkeypatch.setattr(
        "primesvt.exporting.agreement.compare", lambda *_, **__: _Nothing.agreement()
    )
    finished = primesvt("export", saved, "--format", "torch-export")
    assert finished.code == 1
    assert "it was deleted" in finished.err
    assert not (saved / "export").exists()


class _Nothing:
    @staticmethod
    def agreement():
        from primesvt.exporting import Agreement

        return Agreement(
            samples=10,
            source="",
            predictions=0.5,
            mean_difference=0.0,
            largest_difference=0.0,
            scale=1.0,
        )


def test_a_missing_package_is_named(primesvt, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    finished = primesvt("export", saved)
    assert finished.code == 1
    assert "pip install onnx onnxruntime onnxscript" in finished.err

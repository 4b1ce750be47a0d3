"""Whole exports: of runs, saved models and names, checked, refused, recorded."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from primesvt import create_model, export, load
from primesvt.checkpoint.folder import save_model
from primesvt.data.config import events
from primesvt.exporting import formats
from primesvt.exporting import onnx as payload
from primesvt.exporting.deploy import deploy
from primesvt.exporting.source import open_origin, samples_of
from primesvt.models import Provenance

from ..data.event_samples import LABELS, frames, written
from .conftest import tiny


def pt2(source, out=None, **options):
    return export(source, out, format="torch-export", **options)


def brief():
    """One time step, where nothing depends on there being more: half as much to export."""
    return tiny(time_steps=1)


def digits(count):
    samples = samples_of(
        open_origin("sdt_v2_digits"), data="digits", example_input=None, count=count, batch_size=64
    )
    return torch.cat([inputs for inputs, _ in samples])


def test_a_run_as_onnx(run, tmp_path):
    heard = []
    made = export(run, tmp_path / "a.onnx", progress=lambda *said: heard.append(said))
    assert (made.opset, made.input) == (18, "float32 [batch, 1, 8, 8]")
    assert made.agreement.predictions == 1
    assert made.agreement.equal_spikes > 0.9999
    assert made.agreement.source == "256 of the 450 images of the selection set of digits"
    assert made.agreement.accuracy[0] == made.agreement.accuracy[1] > 0
    assert [size.step for size in made.sizes] == ["Before pruning", "After pruning", "Exported"]
    assert made.sizes[0].weights > made.sizes[1].weights > made.sizes[2].weights
    assert made.sizes[2].file == made.path.stat().st_size
    assert heard[0] == ("exporting", 0, 0)
    assert heard[-1] == ("comparing", 256, 256)
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": digits(30).numpy()})
    expected = load(run)(digits(30)).detach().numpy()
    assert np.abs(found - expected).mean() < 1e-3
    facts = session.get_modelmeta().custom_metadata_map
    assert facts == {
        "family": "sdt_v1",
        "time_steps": "2",
        "input": "1x8x8 pixels, values in 0..1, minus the mean 0.5, divided by 0.5",
    }


def test_eight_bits_on_top(run, tmp_path, monkeypatch):
    for name in ("export_program", "onnx_model"):  # both exports write the same graph
        monkeypatch.setattr(payload, name, once(getattr(payload, name)))
    loose = export(run, tmp_path / "a.onnx", weight_bits=8, agreement=0.5)
    steps = {size.step: size for size in loose.sizes}
    assert loose.rounded.front == 0
    assert 0.5 < loose.agreement.predictions < 1
    assert steps["Exported, 8-bit weights"].file == loose.path.stat().st_size
    assert steps["Exported, 8-bit weights"].weights < 0.5 * steps["Exported"].weights
    strict = export(run, tmp_path / "b.onnx", weight_bits=8, agreement=0.995)
    assert strict.rounded.front > 0
    assert strict.agreement.predictions >= 0.995
    assert loose.path.stat().st_size < strict.path.stat().st_size < steps["Exported"].file


def once(real):
    """The first answer again for every later call."""
    answers = []

    def called(*args, **options):
        if not answers:
            answers.append(real(*args, **options))
        return answers[0]

    return called


def test_a_run_as_a_program_of_pytorch(run):
    made = pt2(run, images=30)
    program = torch.export.load(made.path)
    with torch.no_grad():
        expected = load(run)(digits(30))
    for batch in (1, 30):
        torch.testing.assert_close(program.module()(digits(30)[:batch]), expected[:batch])
    assert b"/exporting/" not in made.path.read_bytes()
    assert not [name for name in program.state_dict if ".bn." in name or "unused" in name]

    # Everything is written down beside the file.
    assert made.path == run / "export" / "model.pt2"
    record = json.loads((run / "export" / "model.pt2.json").read_text())
    assert record["path"] == str(made.path)
    assert record["agreement"]["samples"] == 30
    assert len(record["agreement"]["spikes"]) == 12
    assert sorted(p.name for p in made.path.parent.iterdir()) == ["model.pt2", "model.pt2.json"]
    shutil.rmtree(run / "export")


def damped(made):
    for layer in (m for m in made.network.modules() if isinstance(m, torch.nn.Conv2d)):
        layer.weight.data *= 0.7
    return made


def test_what_does_not_agree_is_deleted(tmp_path, monkeypatch):
    (tmp_path / "a.pt2").write_text("of an earlier export")
    monkeypatch.setattr(formats, "deploy", lambda *given: damped(deploy(*given)))
    with pytest.raises(ValueError, match=r"changes the prediction of \d+ of 100") as caught:
        pt2(brief(), tmp_path / "a.pt2", data="digits", images=100)
    assert "99.00% asked" in str(caught.value)
    assert "of the spikes are the same, fewest in " in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert (tmp_path / "a.pt2").read_text() == "of an earlier export"
    anyway = pt2(brief(), tmp_path / "a.pt2", data="digits", images=20, agreement=0.0)
    assert anyway.agreement.predictions < 0.99


def test_a_killed_export_leaves_nothing(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("primesvt.exporting.agreement.compare", lambda *a, **k: killed())
    with pytest.raises(KeyboardInterrupt):
        pt2(brief(), tmp_path / "a.pt2", data="digits")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model(tmp_path):
    save_model(brief(), tmp_path / "saved" / "model")
    made = pt2(tmp_path / "saved", images=10)
    assert made.path == tmp_path / "saved" / "export" / "model.pt2"
    assert [size.step for size in made.sizes] == ["The network", "Exported"]


def test_a_module_is_left_as_it_is(tmp_path):
    model = brief().double().train()
    given = pt2(model, tmp_path / "given.pt2", data="digits", images=10)
    assert given.agreement.predictions == 1
    assert model.training
    assert model.head.fc.weight.dtype == torch.float64


def test_a_model_beside_a_run_is_compared_on_its_data_but_is_not_it(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "model", tmp_path / "run" / "finetuned" / "model")
    (tmp_path / "run" / "finetuned" / "recipe.yaml").write_text("epochs: 3\n")
    origin = open_origin(tmp_path / "run" / "finetuned")
    assert origin.run is None
    assert origin.recipe.data == "digits"
    assert origin.home == tmp_path / "run" / "finetuned"
    assert open_origin(tmp_path / "run" / "model").run == tmp_path / "run"


def test_event_frames(tmp_path):
    model = tiny(in_channels=2, num_classes=3)
    model.provenance = Provenance(data=events(2, 8))
    shown = {"frames": frames((12, 3, 2, 8, 8)), "labels": LABELS}
    made = export(model, tmp_path / "a.onnx", data=str(written(tmp_path / "frames.npz", **shown)))
    assert made.input == "float32 [batch, 3, 2, 8, 8]"
    assert "samples of the selection set of frames.npz" in made.agreement.source
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "frames"
    assert session.get_modelmeta().custom_metadata_map["time_steps"] == "3"


def test_images_of_a_batch_that_influence_each_other(tmp_path):
    model = tiny("qkformer_digits")
    made = pt2(model, tmp_path / "a.pt2", data="digits", images=12, batch_size=6)
    assert "as the model does in a batch of one" in made.notes[0]
    assert made.agreement.equal_spikes > 0.999


def test_samples_are_spread_over_the_set():
    everything = digits(450)
    assert torch.equal(digits(3), everything[[0, 224, 449]]) or torch.equal(
        digits(3), everything[[0, 225, 449]]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "tflite"}, "unknown export format .tflite.; known: onnx, torch-export, hub"),
        ({"weight_bits": 4}, "weight_bits is 4; 8 is what can be had"),
        ({"weight_bits": 8, "format": "torch-export"}, "not written as .*; use the format onnx"),
        ({"agreement": 99}, "agreement is 99, but is a share"),
        ({"images": 0}, "images is 0, but must be at least 1"),
        ({"push": "me/it"}, "only the format hub can be pushed"),
    ],
)
def test_settings_that_cannot_be(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export("sdt_v2_digits", tmp_path / "a.onnx", **options)


def test_places_that_cannot_be(run, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; name a file in it, such as model\.onnx"):
        export(run, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        export(run, tmp_path, format="hub")


def test_images_are_not_guessed(tmp_path):
    model = create_model("sdt_v2_small")
    assert isinstance(model.provenance, Provenance)
    with pytest.raises(ValueError, match="which data this model belongs to"):
        pt2(model, tmp_path / "a.pt2")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"\(onnxscript\): pip install onnx"):
        export("sdt_v2_digits", tmp_path / "a.onnx")

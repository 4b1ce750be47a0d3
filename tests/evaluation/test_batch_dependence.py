"""Models in which the images of a batch influence each other: batches are fixed, and on record."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from primesvt import create_model, prune
from primesvt.checkpoint.folder import save_model
from primesvt.cli import main
from primesvt.config import Constraints
from primesvt.evaluation.batch_dependence import batch_note, mixing_of
from primesvt.evaluation.evaluator import outcomes
from primesvt.models import Provenance, model_entry
from primesvt.training import TrainRecipe, train

from ..channels.firing import excite

NAME = "qkformer_digits"
SENTENCE = (
    'The images of a batch influence each other in this model (proj_neuron="mixed"): evaluated in'
    " batches of 16, in a fixed order; the last batch of the selection set has 12; the last batch"
    " of the test set has 8."
)


def firing(digits, **options):
    """A model of random weights in which every neuron fires."""
    torch.manual_seed(0)
    model = create_model(NAME, **options).double()
    images = torch.stack([digits.selection[i][0] for i in range(16)]).double()
    assert excite(model, images, seed=0, low=0.001, high=0.99)
    return model.float()


@pytest.fixture(scope="module")
def _mixed(digits):
    return firing(digits)


@pytest.fixture
def mixed(_mixed):
    return copy.deepcopy(_mixed)


def run(model, data, **options):
    asked = {"include": ["*.mlp.fc1"], "rates": (0.5,), "gate": "point", "verify": False}
    asked |= {"constraints": Constraints(max_accuracy_drop=1, min_memory_saving=None)}
    asked |= {"policy": "prime", "importance": "l2", "recovery": "none", "lossless": False}
    return prune(model, data=data, **asked | options)


def logits(model, digits, size):
    images = torch.stack([digits.selection[i][0] for i in range(60)])
    with torch.no_grad():
        return torch.cat([model.eval()(batch) for batch in images.split(size)])


def test_the_batch_is_part_of_the_result(mixed, digits):
    assert torch.equal(logits(mixed, digits, 16), logits(mixed, digits, 16))
    assert not torch.equal(logits(mixed, digits, 16), logits(mixed, digits, 20))
    apart = firing(digits, proj_neuron="per_image")
    assert torch.allclose(logits(apart, digits, 16), logits(apart, digits, 20), atol=1e-5)


def test_outcomes_keep_order_and_the_incomplete_last_batch(mixed, digits):
    labels = torch.tensor([digits.selection[i][1] for i in range(60)])
    expected = logits(mixed, digits, 16).argmax(1) == labels
    for workers in (0, 2):
        found = outcomes(mixed, digits.selection, batch_size=16, workers=workers)
        assert (found == expected.numpy()).all()


def test_what_is_said_of_batches():
    mixed, apart = create_model(NAME), create_model(NAME, proj_neuron="per_image")
    sets = {"selection": range(60), "test": range(40)}
    assert batch_note(mixed, 16, **sets) == (SENTENCE,)
    assert batch_note(mixed, 20, selection=range(60), test=None)[0].endswith("in a fixed order.")
    assert batch_note(apart, 16, **sets) == ()
    assert batch_note(nn.Linear(2, 2), 16) == ()
    assert mixing_of(nn.Sequential(nn.Flatten(0, 0), mixed)) == 'proj_neuron="mixed"'
    assert mixing_of(create_model(NAME, depths=(1, 0))) == ""


def test_a_run_puts_its_batches_on_record(mixed, digits, tmp_path):
    result = run(mixed, digits, batch_size=16, out=tmp_path / "run")
    assert result.metrics.notes[0] == SENTENCE
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["notes"][0] == SENTENCE
    page = (tmp_path / "run" / "report.html").read_text()
    assert "evaluated in batches of 16, in a fixed order" in page
    with pytest.raises(ValueError, match="probes of another batch size"):
        run(mixed, digits, batch_size=20, from_run=tmp_path / "run", out=tmp_path / "other")


def test_the_defaults_on_batches_that_mix(mixed, digits, tmp_path):
    """Allocation, OBS and refit, with statistics from mixed batches too."""
    best = {"policy": "allocate", "importance": "obs", "recovery": "refit", "lossless": True}
    asked = {"constraints": Constraints(max_accuracy_drop=9, min_memory_saving=None)} | best
    few = dataclasses.replace(digits, calibration=Subset(digits.calibration, range(64)))
    first = run(mixed, few, batch_size=16, **asked, out=tmp_path / "run")
    assert first.plan.steps and first.metrics.notes[0].startswith("The images of a batch")
    again = run(mixed, few, batch_size=16, **asked)
    assert again.plan == first.plan
    assert all(
        torch.equal(value, first.model.state_dict()[name])
        for name, value in again.model.state_dict().items()
    )


def test_a_run_on_independent_images_says_nothing(digits):
    model = create_model(NAME, proj_neuron="per_image").eval()
    assert not any("batch" in note for note in run(model, digits).metrics.notes)


def test_a_score_of_ones_own_is_told_that_its_batches_matter(mixed, digits):
    result = run(
        mixed,
        None,
        score=lambda model: outcomes(model, digits.selection, batch_size=30),
        constraints=Constraints(max_accuracy_drop=0.01, min_memory_saving=None),
    )
    assert result.metrics.notes[0].endswith("the score holds for the batches that it forms.")


@pytest.fixture
def saved(mixed, tmp_path):
    mixed.provenance = Provenance(data=model_entry(NAME).data, held_out=True)
    save_model(mixed, tmp_path / "model")
    return str(tmp_path / "model")


def one_line(text):
    return " ".join(text.split())


def test_evaluate_prints_and_returns_the_batches(saved, capsys):
    words = ["evaluate", saved, "--batch-size", "64"]
    said = "evaluated in batches of 64, in a fixed order; the last batch of the test set has 2."
    assert main(words) == 0
    assert said in one_line(capsys.readouterr().out)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch_size"] == 64
    assert found["notes"][0].endswith(said)


def test_evaluate_of_another_model_prints_no_note(capsys):
    assert main(["evaluate", "sdt_v2_digits", "--batch-size", "450"]) == 0
    assert "influence" not in capsys.readouterr().out


def test_prune_prints_the_batches_before_it_starts(saved, tmp_path, capsys):
    words = ["prune", saved, "--include", "*.block2_0.mlp.fc1", "--rates", "0.5"]
    words += ["--batch-size", "150", "--max-accuracy-drop", "1", "--min-memory-saving", "0"]
    assert main([*words, "--out", str(tmp_path / "run")]) in (0, 3)
    assert "in batches of 150, in a fixed order." in one_line(capsys.readouterr().out)


def test_training_records_how_it_scored(tmp_path, monkeypatch, digits):
    train_part = Subset(digits.train, range(64))
    small = dataclasses.replace(digits, train=train_part)
    monkeypatch.setattr("primesvt.training.run.load_data", lambda *_args, **_options: small)
    recipe = TrainRecipe(model=NAME, epochs=1, batch_size=32, warmup_epochs=0)
    record = train(recipe, out_dir=tmp_path / "trained")
    assert record.notes[0].endswith(
        "evaluated in batches of 128, in a fixed order; the last batch of the selection set has 60;"
        " the last batch of the test set has 40."
    )
    written = json.loads((tmp_path / "trained" / "record.json").read_text())
    assert tuple(written["notes"]) == record.notes

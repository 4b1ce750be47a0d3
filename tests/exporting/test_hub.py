"""The Hub's layout: a folder that loads again, with a card made from figures."""

from __future__ import annotations

import io
import json
import shutil
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from primesvt import export, load
from primesvt.checkpoint.folder import save_model
from primesvt.exporting import hub
from primesvt.models import create_model

from .conftest import tiny


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("hub") / "model"
    made = export(run, place, format="hub")
    assert made.path == place
    assert made.agreement.predictions == made.agreement.equal_spikes == 1
    assert made.agreement.largest_difference == 0
    assert made.sizes[-1].file == (place / "model.safetensors").stat().st_size
    return place


def test_the_folder_loads_as_the_run_does(run, folder):
    names = ["README.md", "accuracy.png", "config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(load(folder)(images), load(run)(images))


def test_the_card_has_metadata_for_the_hub(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "primesvt"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "structured-pruning" in metadata["tags"]
    assert text.lstrip().startswith("# tiny, pruned\n")


def test_the_card_tells_the_figures_of_the_run(run, folder):
    text = (folder / "README.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    before, after = (metrics[when]["parameters"] for when in ("before", "after"))
    assert f"| Parameters | {before:,} | {after:,} | " in text
    assert f"{metrics['saving']:.1%} less parameter memory" in text
    assert "100.00% of the predictions" in text
    assert "minus the mean 0.5" in text
    assert "{{" not in text
    assert "{%" not in text
    assert str(run.parent) not in text


def test_the_picture_shows_something_and_has_words(folder):
    picture = np.asarray(Image.open(io.BytesIO((folder / "accuracy.png").read_bytes())))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20
    assert "![Accuracy against parameter memory saved, for " in (folder / "README.md").read_text()


def test_a_model_that_no_run_made(tmp_path):
    made = export(tiny(), tmp_path / "hub", format="hub", data="digits", images=20)
    text = (made.path / "README.md").read_text()
    assert "pruned" not in text
    assert "accuracy.png" not in text
    assert "for 10 classes.\n" in text
    assert torch.equal(load(made.path)(torch.ones(1, 1, 8, 8)), tiny()(torch.ones(1, 1, 8, 8)))


def test_batches_that_mix_images_are_told(tmp_path):
    model = tiny("qkformer_digits")
    made = export(model, tmp_path / "hub", format="hub", data="digits", images=6)
    assert "The images of a batch influence each other" in (made.path / "README.md").read_text()


def test_a_pruned_module_without_its_plan_cannot_come_back(run, tmp_path):
    with pytest.raises(ValueError, match="does not fit the config"):
        export(load(run), tmp_path / "hub", format="hub", data="digits")
    assert list(tmp_path.iterdir()) == []


class FakeApi:
    """What of the Hub's client is used, without a network."""

    calls: ClassVar[list[tuple[str, str]]] = []
    fails: ClassVar[Exception | None] = None

    def create_repo(self, repo_id, exist_ok):
        assert exist_ok
        if FakeApi.fails:
            raise FakeApi.fails
        FakeApi.calls.append(("create", repo_id))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path):
        FakeApi.calls.append(("upload", folder_path))


@pytest.fixture
def hub_client(monkeypatch):
    client, errors = types.ModuleType("huggingface_hub"), types.ModuleType("errors")
    client.HfApi = FakeApi
    errors.HfHubHTTPError = errors.HFValidationError = ConnectionError
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    FakeApi.calls, FakeApi.fails = [], None
    return FakeApi


def test_pushed_only_when_asked(hub_client, tmp_path):
    export(tiny(), tmp_path / "a", format="hub", data="digits", images=5)
    assert hub_client.calls == []
    made = export(tiny(), tmp_path / "b", format="hub", data="digits", images=5, push="me/tiny")
    assert hub_client.calls == [("create", "me/tiny"), ("upload", str(tmp_path / "b"))]
    assert made.url == "https://hub/me/tiny"
    assert 'snapshot_download("me/tiny")' in (tmp_path / "b" / "README.md").read_text()


def test_a_refused_push_keeps_the_folder(hub_client, tmp_path):
    hub_client.fails = ConnectionError("401 Unauthorized\nmore")
    with pytest.raises(ValueError, match="could not push to me/tiny: 401 Unauthorized; the"):
        export(tiny(), tmp_path / "b", format="hub", data="digits", images=5, push="me/tiny")
    assert load(tmp_path / "b").config.embed_dim == 16


def test_pushing_needs_a_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        hub.upload(tmp_path, "me/tiny")


def test_the_real_client_has_what_is_used():
    client = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    assert callable(client.HfApi.create_repo)
    assert callable(client.HfApi.upload_folder)
    assert issubclass(errors.HfHubHTTPError, Exception)
    assert issubclass(errors.HFValidationError, Exception)


def test_half_written_folders_are_cleared(run, tmp_path):
    (tmp_path / ".hub.unverified").mkdir()
    (tmp_path / ".hub.unverified" / "README.md").write_text("of a killed export")
    export(run, tmp_path / "hub", format="hub", images=5)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_distilled_models_come_back(tmp_path):
    model = create_model("sdt_v2_digits", distillation=True).eval()
    save_model(model, tmp_path / "saved")
    made = export(tmp_path / "saved", format="hub", images=5)
    assert made.path == tmp_path / "saved" / "export" / "hub"


def test_the_card_escapes_what_files_of_a_run_say(run, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    metrics = json.loads((place / "metrics.json").read_text())
    evil = "a <script>alert(1)</script> [click](http://x.y) | ![i](z) `code` \u202e\x1b[31m"
    metrics["data"] = evil
    metrics["notes"] = [evil]
    (place / "metrics.json").write_text(json.dumps(metrics))
    export(place, tmp_path / "hub", format="hub")
    text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)[2]
    assert "click" in text
    for raw in ("<script>", "[click](", "![i](", "\u202e", "\x1b", " `code`"):
        assert raw not in text

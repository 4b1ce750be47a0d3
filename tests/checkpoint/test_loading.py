"""``primesvt.load`` takes the official file of every family as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import primesvt

from ..families.cases import CASES
from .official_files import FILES, GOLDENS, ROWS, golden, same_logits, timm_with_average


@pytest.fixture(scope="session")
def reference(shared: Path) -> Path:
    return shared / "reference"


def test_every_reference_file_is_in_a_container(reference: Path) -> None:
    files = {path.stem for path in (reference / "golden").glob("*.json")}
    assert files == set(FILES) == set(GOLDENS)


def test_every_published_container_is_tried(reference: Path) -> None:
    table = (reference / "TABLE.md").read_text().split("## Checkpoint formats")[1]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert set(rows[1:]) <= set(ROWS)
    assert len(rows) == 9


@pytest.mark.parametrize("name", FILES)
def test_files_load_without_naming_the_family(name, reference, tmp_path, capsys):
    state, tensors = golden(reference, name)
    file, make = FILES[name]
    case, overrides = GOLDENS[name]
    torch.save(make(state), tmp_path / file)

    model = primesvt.load(tmp_path / file, **overrides)
    told = capsys.readouterr()

    assert model.config.family == case.family
    assert not model.training
    assert same_logits(model, tensors)
    assert told.out == ""
    assert told.err.startswith(str(tmp_path / file))
    assert overrides.items() <= {**model.loaded.inferred, **model.loaded.given}.items()
    assert ("state_dict_ema" in told.err) == (make is timm_with_average)


@pytest.mark.parametrize("name", ["sdt2-tiny", "spikingresformer-dvsg-tiny"])
def test_safetensors_load_alike(name, reference, tmp_path):
    state, tensors = golden(reference, name)
    save_file(state, tmp_path / "model.safetensors")
    model = primesvt.load(tmp_path / "model.safetensors", quiet=True, **GOLDENS[name][1])
    assert same_logits(model, tensors)


MANIFESTS = {name: entry for case in CASES for name, entry in case.manifests.items()}


# The same tensors as spikingresformer_cifar10: only settings tell.
TWINS = {"spikingresformer-cifar10dvs": {"time_steps": 16}}


@pytest.mark.parametrize("name", MANIFESTS)
def test_published_shapes_are_their_own_variant(name, reference):
    from primesvt.models.official.recognise import recognise

    manifest = json.loads((reference / "manifest" / f"{name}.json").read_text())
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in manifest["state_dict"].items()}
    found = recognise(state, family=None, overrides=TWINS.get(name, {}))
    assert found.loaded.exact
    assert found.entry.name == MANIFESTS[name]
    without_size = {"img_size": None} if "img_size" in found.entry.config.to_dict() else {}
    assert found.config.to_dict() == found.entry.config.to_dict() | without_size

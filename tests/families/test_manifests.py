"""Names, shapes and parameter counts of every published variant, on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from primesvt.models import SpikingViT, create_model, list_models, model_entry, to_official
from primesvt.models.families import FAMILIES

from .cases import CASES

VARIANTS = [
    pytest.param(
        case, name, id=name if name.startswith(case.family + "-") else f"{case.family}-{name}"
    )
    for case in CASES
    for name in case.manifests
]


@pytest.fixture(scope="session")
def folder(shared: Path) -> Path:
    return shared / "reference" / "manifest"


def read(folder: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return loaded


def meta_state(manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in manifest["state_dict"].items()}


def meta_model(name: str) -> SpikingViT:
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize(("case", "name"), VARIANTS)
def test_names_shapes_and_counts(case: Any, name: str, folder: Path) -> None:
    manifest, model = read(folder, name), meta_model(case.manifests[name])
    shapes = {key: list(tensor.shape) for key, tensor in to_official(model).items()}

    assert shapes == manifest["state_dict"]
    assert len(shapes) == len(model.state_dict())
    assert sum(tensor.numel() for tensor in model.parameters()) == manifest["num_params"]
    assert sum(tensor.numel() for tensor in model.buffers()) == manifest["num_buffer_elements"]
    assert len(list(model.parameters())) == manifest["parameter_keys"]
    integers = {key for key, t in to_official(model).items() if t.dtype == torch.int64}
    assert integers == {k for k in shapes if k.endswith(manifest["int64_keys_suffix"])}


@pytest.mark.parametrize(("case", "name"), VARIANTS)
def test_config_is_inferred_from_shapes(case: Any, name: str, folder: Path) -> None:
    state = meta_state(read(folder, name))
    config = model_entry(case.manifests[name]).config
    found = FAMILIES[case.family].infer(state)
    assert found == {field: getattr(config, field) for field in found}


@pytest.mark.parametrize(("case", "name"), VARIANTS)
def test_no_other_family_takes_the_state_dict(case: Any, name: str, folder: Path) -> None:
    state = meta_state(read(folder, name))
    for other, family in FAMILIES.items():
        if other != case.family:
            with pytest.raises(KeyError):
                family.infer(state)


@pytest.mark.parametrize(("case", "name"), VARIANTS)
def test_the_registered_model_reads_the_official_input(case: Any, name: str, folder: Path) -> None:
    manifest, entry = read(folder, name), model_entry(case.manifests[name])
    events = len(manifest["input_shape"]) == 4
    assert entry.data.input_size == tuple(manifest["input_shape"][-3:])
    assert entry.config.in_channels == manifest["input_shape"][-3]
    assert entry.data.events is events
    if events:
        assert entry.config.time_steps == manifest["input_shape"][0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_models_without_a_manifest_are_small(case: Any) -> None:
    """What is published has a manifest; what we add ourselves is small."""
    known = {model_entry(name).name for name in case.manifests.values()}
    own = {n for n in list_models() if model_entry(n).family == case.family} - known
    assert own, "each family has a small model"
    for name in own:
        assert sum(p.numel() for p in meta_model(name).parameters()) < 2e6, name


def test_every_manifest_belongs_to_a_family(folder: Path) -> None:
    found = {path.stem for path in folder.glob("*.json")}
    covered = [name for case in CASES for name in case.manifests]
    assert sorted(covered) == sorted(found), "each manifest exactly once"

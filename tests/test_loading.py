"""``primesvt.load``: official files of every container, settings, reports, refusals."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import primesvt

from .families.cases import CASES

State = Mapping[str, Tensor]


def progress_of_training() -> dict[str, Any]:
    """What training scripts store beside the weights: states of real optimisers and schedulers."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=5e-4)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[100, 200])
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    return {
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "schedulers": [each.state_dict() for each in (warmup, cosine, steps)],
        "args": argparse.Namespace(
            lr=5e-4, output=Path("runs") / "a", opt_betas=None, pooling="1111", world_size=8
        ),
    }


def wrapped(state: State) -> OrderedDict[str, Tensor]:
    return OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())


def timm(state: State) -> dict[str, Any]:
    extra = progress_of_training()
    return {
        "epoch": 299,
        "arch": "sdt",
        "state_dict": wrapped(state),
        "optimizer": extra["optimizer"],
        "version": 2,
        "args": extra["args"],
        "amp_scaler": extra["scaler"],
        "metric": 74.57,
    }


def timm_with_average(state: State) -> dict[str, Any]:
    other = {name: tensor + 1 for name, tensor in state.items()}
    return {**timm(other), "state_dict_ema": OrderedDict(state)}


def mae(state: State) -> dict[str, Any]:
    extra = progress_of_training()
    return {
        "model": OrderedDict(state),
        "optimizer": extra["optimizer"],
        "epoch": 199,
        "scaler": extra["scaler"],
        "args": extra["args"],
    }


def event_training(state: State) -> dict[str, Any]:
    extra = progress_of_training()
    return {
        "model": OrderedDict(state),
        "optimizer": extra["optimizer"],
        "lr_scheduler": extra["schedulers"][1],
        "epoch": 191,
        "args": extra["args"],
        "max_test_acc1": 80.9,
        "test_acc5_at_max_test_acc1": 99.1,
    }


def resformer(state: State) -> dict[str, Any]:
    extra = progress_of_training()
    return {
        "model": OrderedDict(state),
        "optimizer": extra["optimizer"],
        "epoch": 319,
        "max_acc1": 79.4,
        "lr_scheduler": {"chained": extra["schedulers"]},
    }


def bare(state: State) -> OrderedDict[str, Tensor]:
    return OrderedDict(state)


def in_containers(state: State) -> State:
    return state


# One row of TABLE.md's "Checkpoint formats" each, and the files that stand for it.
ROWS: dict[str, tuple[str, Callable[[State], Any], tuple[str, ...]]] = {
    "SDT v1": (
        "model_best.pth.tar",
        timm,
        ("sdt1-imagenet-tiny", "sdt1-dvs-tiny", "sdt1-plif-mlp1-tiny"),
    ),
    "SDT v1, a bare dict": ("weights.pt", bare, ("sdt1-cifar-tiny",)),
    "SDT v2": ("checkpoint-199.pth", mae, ("sdt2-tiny", "sdt2-kd-tiny")),
    "SDT v3 base": ("checkpoint-199.pth", mae, ("sdt3-base-tiny",)),
    "SDT v3 large": (
        "checkpoint-199.pth",
        mae,
        ("sdt3-large-tiny", "sdt3-large-1x8-tiny", "sdt3-large-base-tiny"),
    ),
    "Spikformer, Spikingformer": (
        "checkpoint-309.pth.tar",
        timm,
        ("spikformer-imagenet-tiny", "spikformer-cifar-tiny", "spikingformer-imagenet-tiny"),
    ),
    "Spikingformer, averaged": (
        "checkpoint-309.pth.tar",
        timm_with_average,
        ("spikingformer-cifar-tiny",),
    ),
    "DVS": (
        "checkpoint_max_test_acc1.pth",
        event_training,
        ("spikformer-dvs-tiny", "spikingformer-dvs-tiny", "qkformer-dvs-tiny"),
    ),
    "QKFormer ImageNet": ("checkpoint-199.pth", mae, ("qkformer-imagenet-tiny",)),
    "QKFormer CIFAR": ("model_best.pth.tar", timm, ("qkformer-cifar-tiny",)),
    "SpikingResformer": (
        "checkpoint_max_acc1.pth",
        resformer,
        (
            "spikingresformer-imagenet-tiny",
            "spikingresformer-cifar-tiny",
            "spikingresformer-dvsg-tiny",
        ),
    ),
}
FILES = {name: (file, make) for file, make, names in ROWS.values() for name in names}
GOLDENS = {name: (case, given) for case in CASES for name, given in case.goldens.items()}


@pytest.fixture(scope="session")
def reference(shared: Path) -> Path:
    return shared / "reference"


def golden(reference: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The official state dict of a reference file, and its other tensors."""
    stored = load_file(reference / "golden" / f"{name}.safetensors")
    state = {k.removeprefix("state."): t for k, t in stored.items() if k.startswith("state.")}
    return state, {name: t for name, t in stored.items() if not name.startswith("state.")}


def same_logits(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    with torch.no_grad():
        found = model.double().eval()(tensors["input"].double())
    expected = tensors["logits_f64"]
    expected = expected.mean(0) if expected.ndim == 3 else expected
    return bool((found - expected).abs().max() <= 1e-9)


def test_every_reference_file_is_in_a_container(reference: Path) -> None:
    files = {path.stem for path in (reference / "golden").glob("*.json")}
    assert files == set(FILES) == set(GOLDENS)


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
    from primesvt.models.recognise import recognise

    manifest = json.loads((reference / "manifest" / f"{name}.json").read_text())
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in manifest["state_dict"].items()}
    found = recognise(state, family=None, overrides=TWINS.get(name, {}))
    assert found.loaded.exact
    assert found.entry.name == MANIFESTS[name]
    without_size = {"img_size": None} if "img_size" in found.entry.config.to_dict() else {}
    assert found.config.to_dict() == found.entry.config.to_dict() | without_size

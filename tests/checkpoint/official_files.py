"""Checkpoint files as the authors' training scripts write them, made from the reference weights."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..families.cases import CASES

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
    "Spikformer, Spikingformer (ImageNet, CIFAR)": (
        "checkpoint-309.pth.tar",
        timm,
        ("spikformer-imagenet-tiny", "spikformer-cifar-tiny", "spikingformer-imagenet-tiny"),
    ),
    "Spikingformer, averaged": (
        "checkpoint-309.pth.tar",
        timm_with_average,
        ("spikingformer-cifar-tiny",),
    ),
    "Spikformer, Spikingformer, QKFormer (DVS)": (
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

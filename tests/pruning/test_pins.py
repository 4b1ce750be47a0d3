"""Kept channels and integer counts of three short runs, as ``pins.json`` has them.

They are what another processor repeats: channels are ranked by their L2 norms, and the score counts
parameters, so that no decision hangs on the rounding of a sum. Where a result is meant to change,
``python -m tests.pruning.test_pins`` records them again; it refuses a run that weights shaken by
1e-5 would decide otherwise. ``benchmarks/pins.py`` compares whole runs with an earlier commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import primesvt

FILE = Path(__file__).parent / "pins.json"
LIMITS = {"max_accuracy_drop": 31, "min_memory_saving": None}  # 31 x 1,024 parameters may go
L2 = {"importance": "l2", "recovery": "none", "gate": "point", "lossless": False}
RUNS: dict[str, dict[str, Any]] = {
    "paper": {
        "preset": "paper",
        "rates": [0.25, 0.53, 0.89],
        "include": ["*.conv1b.*", "*.block4_0.*"],
    },
    "uniform": {**L2, "policy": "uniform", "rates": [0.2, 0.35, 0.6], "channel_multiple": 4},
    "global": {**L2, "policy": "global", "rates": [0.1, 0.23, 0.5], "include_streams": True},
}
COUNTS = ("parameters", "parameter_bytes", "buffer_bytes", "membrane_bytes_per_sample")


def parameters(model: nn.Module) -> float:
    """A score that every processor gives alike: parameters, in units that floats hold exactly."""
    return sum(p.numel() for p in model.parameters()) / 1024


def found(name: str, model: nn.Module) -> dict[str, Any]:
    """What is pinned of a run."""
    result = primesvt.prune(
        model,
        score=parameters,
        example_input=torch.zeros(1, 1, 8, 8),
        calibration=torch.zeros(2, 1, 8, 8),
        constraints=primesvt.Constraints(**LIMITS),
        verify=False,
        **RUNS[name],
    )
    costs = {"before": result.metrics.before, "after": result.metrics.after}
    return {
        "steps": [
            f"{step.group} at {step.rate:g}: {list(step.before)} -> {list(step.after)}, "
            f"{step.parameter_bytes} bytes left"
            for step in result.plan.steps
        ],
        "kept": {
            group: [" ".join(map(str, row)) for row in rows]
            for group, rows in result.plan.groups.items()
        },
        **{side: {count: getattr(of, count) for count in COUNTS} for side, of in costs.items()},
    }


def pretrained() -> nn.Module:
    model: nn.Module = primesvt.create_model("sdt_v2_digits", pretrained=True)
    return model


@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_the_same_channels(name: str) -> None:
    pinned = json.loads(FILE.read_text())
    assert set(pinned) == set(RUNS)
    assert found(name, pretrained()) == pinned[name]


def shaken(seed: int) -> nn.Module:
    """The network with every parameter off by up to a hundred-thousandth."""
    model, generator = pretrained(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p *= 1 + 1e-5 * (2 * torch.rand(p.shape, generator=generator) - 1)
    return model


def record() -> None:
    """Write ``pins.json`` anew."""
    pins = {name: found(name, pretrained()) for name in RUNS}
    for name, pin in pins.items():
        if any(found(name, shaken(seed)) != pin for seed in range(3)):
            raise ValueError(f"{name} keeps other channels when weights are shaken: choose another")
    FILE.write_text(json.dumps(pins, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    record()

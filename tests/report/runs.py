"""Run folders of every kind, written without any pruning."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from primesvt.channels import remove_channels, trace
from primesvt.channels.plan import Plan, PlanStep, describe_inputs
from primesvt.checkpoint.folder import save_model
from primesvt.config import Limits, Method, PruneConfig
from primesvt.models import create_model

FC1, FC3, CONV = "blocks.block4_0.mlp.fc1", "blocks.block3_0.mlp.fc1", "blocks.conv2a.conv1"
SIZES = {FC1: 160, FC3: 128, CONV: 64}
BYTES = 464_488


def score(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "low": accuracy - 0.015,
        "high": min(1.0, accuracy + 0.008),
        "images": 450,
    }


def costs(size: int, selection: float | None, test: float | None, **more: Any) -> dict[str, Any]:
    return {
        "parameters": size // 4,
        "parameter_bytes": size,
        "buffer_bytes": 13_608,
        "membrane_bytes_per_sample": size // 4,
        "peak_activation_bytes_per_sample": size // 2,
        "selection": None if selection is None else score(selection),
        "test": None if test is None else score(test),
        "score": None,
        **more,
    }


def metrics_of(size: int = 348_366, **changed: Any) -> dict[str, Any]:
    return {
        "met": True,
        "verdict": "Limits met: 25.00% saved for a drop of 0.6667 points.",
        "bounded_by": "accuracy",
        "saving": 1 - size / BYTES,
        "required_saving": 0.0,
        "drop": 0.02 / 3,
        "bound": 0.01656265987755129,
        "limits": {
            "max_accuracy_drop": 2.0,
            "min_memory_saving": None,
            "max_parameter_memory": None,
            "stop_at_saving": False,
        },
        "before": costs(BYTES, 0.988, 0.9867),
        "after": costs(size, 0.988 - 0.02 / 3, 0.9747),
        "data": "digits: train 897, selection 450, test 450 images",
        "selection_from_train": False,
        "notes": ["No layer was deselected: all 3 are targets."],
        "confirmation": None,
        "lossless": None,
        **changed,
    }


def step_of(
    group: str, kept: int, accuracy: float | None, size: int, **changed: Any
) -> dict[str, Any]:
    return {
        "group": group,
        "rate": round(1 - kept / SIZES.get(group, 160), 1),
        "before": [1, SIZES.get(group, 160)],
        "after": [1, kept],
        "accuracy": accuracy,
        "drop": None,
        "bound": None,
        "saving": 1 - size / BYTES,
        "parameter_bytes": size,
        "recovery": "least squares (blocks.a.fc2), batch norm",
        **changed,
    }


def reference(**context: Any) -> dict[str, Any]:
    return {
        "kind": "reference",
        "format": 2,
        "context": context,
        "accuracy": 0.988,
        "parameter_bytes": BYTES,
        "samples": 450,
    }


def probe(accuracy: float, saving: float, kind: str = "walk", **cuts: Any) -> dict[str, Any]:
    rejected = cuts.pop("rejected", None)
    row = {
        "kind": kind,
        "cuts": cuts["cuts"],
        "accuracy": accuracy,
        "saving": saving,
        "parameter_bytes": round(BYTES * (1 - saving)),
        "samples": 450 if rejected is None else 120,
        "seconds": 0.2,
    }
    return row if rejected is None else {**row, "rejected": rejected}


def write_run(
    folder: Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    steps: Sequence[Mapping[str, Any]] = (),
    probes: Sequence[Mapping[str, Any]] | None = None,
    recipe: str | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder; without ``probes`` as bare as the first versions left it."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe or PruneConfig(model="sdt_v2_digits").to_yaml())
    (folder / "plan.json").write_text(json.dumps({"steps": list(steps), **(plan or {})}))
    (folder / "metrics.json").write_text(json.dumps(metrics or metrics_of()))
    if probes is not None:
        lines = "".join(json.dumps(row) + "\n" for row in probes)
        (folder / "sensitivity.jsonl").write_text(lines)
    return folder


@functools.cache
def _pruned(kept: tuple[tuple[str, int], ...]) -> tuple[nn.Module, Plan]:
    model = create_model("sdt_v2_digits")
    example = torch.rand(1, 1, 8, 8)
    config = model.config.to_dict()
    remove_channels(model, trace(model, example), {name: range(n) for name, n in kept})
    steps = tuple(PlanStep(**step_of(name, n, None, BYTES)) for name, n in kept)
    plan = Plan(
        model_hash="",
        config=config,
        inputs=describe_inputs((example,)),
        steps=steps,
        groups={name: (tuple(range(n)),) for name, n in kept},
    )
    return model, plan


def whole_run(folder: Path, policy: str = "prime", **changed: Any) -> Path:
    """A run folder with everything in it: a pruned model, probes of one policy, its recipe."""
    kept = ((FC1, 32), (CONV, 32)) if policy == "prime" else ((FC1, 16), (FC3, 64))
    model, plan = _pruned(kept)
    size = 4 * sum(p.numel() for p in model.parameters())
    first, second = (0.986, 0.988 - 0.02 / 3) if policy == "prime" else (None, 0.988 - 0.02 / 3)
    steps = [
        step_of(kept[0][0], kept[0][1], first, round(0.5 * (BYTES + size))),
        step_of(kept[1][0], kept[1][1], second, size),
    ]
    method = Method(policy="prime" if policy == "prime" else "allocate")
    recipe = PruneConfig(model="sdt_v2_digits", limits=Limits(max_accuracy_drop=2), method=method)
    write_run(
        folder,
        metrics=metrics_of(size, **changed),
        steps=steps,
        probes=prime_probes(size) if policy == "prime" else allocate_probes(size),
        recipe=recipe.to_yaml(),
        plan={"config": plan.config, "inputs": list(plan.inputs)},
    )
    save_model(model, folder / "model", plan=plan)
    return folder


def prime_probes(size: int) -> list[dict[str, Any]]:
    saved = 1 - size / BYTES
    alone = [
        probe(0.988 - 0.004 * number**1.5, 0.05, "layer", cuts={name: kept})
        for name, whole in SIZES.items()
        for number, kept in enumerate((round(0.8 * whole), round(0.5 * whole), round(0.1 * whole)))
    ]
    walk = [
        probe(0.986, saved / 2, cuts={FC1: 32}),
        probe(0.988 - 0.02 / 3, saved, cuts={FC1: 32, CONV: 32}),
        probe(0.955, saved + 0.1, cuts={FC1: 32, CONV: 6}),
        probe(0.4, saved + 0.2, cuts={FC1: 32, CONV: 6, FC3: 13}, rejected=0.02),
    ]
    return [reference(), *alone, *walk]


def allocate_probes(size: int) -> list[dict[str, Any]]:
    saved = 1 - size / BYTES
    alone = [
        {"kind": "distance", "cuts": {name: kept}, "distance": 0.001 * number, "seconds": 0.1}
        for name, whole in SIZES.items()
        for number, kept in enumerate((round(0.8 * whole), round(0.5 * whole), round(0.2 * whole)))
    ]
    walk = [
        probe(0.988 - 0.02 / 3, saved, cuts={FC1: 16, FC3: 64}),
        probe(0.96, saved + 0.05, cuts={FC1: 8, FC3: 32, CONV: 51}),
    ]
    return [reference(), *alone, *walk]


def counted(share: float, *, gone: Sequence[str] = ()) -> dict[str, Any]:
    """Operations, energy and times of a network that is so much of another."""
    rates = {"blocks.a.lif": 0.2, "blocks.b.lif1": 0.3, "blocks.b.lif2": 0.1}
    neurons = [
        {"module": name, "kind": "neuron", "macs": 0.0, "rate": rate * share}
        for name, rate in rates.items()
        if name not in gone
    ]
    layers = [{"module": "blocks.a.conv", "kind": "layer", "macs": 2e6, "rate": 0.4}]
    return {
        "file_bytes": round(500_000 * share),
        "operations": {
            "samples": 64,
            "macs": 2e6 * share,
            "multiplied": 1e5,
            "synops": 4e5 * share,
            "firing_rate": 0.2 * share,
            "modules": [*layers, *neurons],
        },
        "energy": {"operations": 2e-6 * share, "with_memory": 8e-5 * share},
        "latency": [
            {
                "batch": batch,
                "milliseconds": time * share,
                "low": 0.9 * time * share,
                "high": 1.1 * time * share,
                "runs": 40,
                "threads": 2,
                "machine": "a machine",
            }
            for batch, time in ((1, 4.0), (32, 40.0))
        ],
    }

"""Forward time on a CPU: as evaluated here, against SpikingJelly's own neurons everywhere.

    python benchmarks/throughput.py      # results/throughput.json and .md, about ten minutes

One thread, no gradients. The plain network has the same weights; its neurons are SpikingJelly's
classes, its stem pools by PyTorch's operator, and its first layer is computed at every time step.
*Neurons alone* has only the neurons of this package. *Here* is bit for bit the same, and
what the search measures with. `quick` (``primesvt.exporting.deploy``) has its batch norms in the
layers in front of them besides, channels last and packed weights: sums are rounded elsewhere, which
may flip spikes. *Pays from*: images after which the time that it took to make is won back, against
*here*. *Convolutions alone* are those of that network on the inputs that they have there: nothing
that keeps their kernels can be quicker. All run in turn, in changing order, so that other load on
the machine meets all; a ratio is that of two neighbouring runs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import RESULTS, described, save
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from primesvt.checkpoint.load import open_model
from primesvt.exporting import quick
from primesvt.exporting.packing import PackedConv2d
from primesvt.models import SpikingViT, create_model, reset
from primesvt.models.blocks import MaxPool
from primesvt.models.fast_paths import LIF, PLIF
from primesvt.models.neurons import lif

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
BATCHES = (1, 32, 256)
POOLED = (256, 32, 32, 32)
LAYERS = ((1, 256, 64, 16, 16), (4, 64, 128, 8, 8), (4, 450, 64, 4, 4), (4, 1, 64, 8, 8))
SECONDS, PAIRS = 40.0, 60  # of one case, at most; at least five pairs
LARGEST = 2**20  # input values times time steps: beyond, activations outgrow a small machine
Forward = Callable[[Tensor], Any]


def cases() -> dict[str, tuple[SpikingViT, tuple[int, int, int]]]:
    """Networks by name, with the size of their images."""
    random = create_model("sdt_v2_small")
    for module in random.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)  # so that neurons fire
    return {
        "sdt_v2_digits": (create_model("sdt_v2_digits", pretrained=True), (1, 8, 8)),
        **{
            name: (open_model(str(CHECKPOINTS / name)).model, (3, 32, 32))
            for name in ("cifar10_seed0", "cifar10_qkformer_seed0", "cifar10_spikformer_seed0")
        },
        "sdt_v2_small, random weights": (random, (3, 32, 32)),
    }


class Pool(MaxPool):
    """Pools by PyTorch's operator."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(nn.MaxPool2d.forward(self, x.flatten(0, 1)), 0, x.shape[:2])


def pooled(module: nn.Module) -> nn.Module:
    """A copy whose pooling is PyTorch's."""
    bare = copy.deepcopy(module)
    for part in bare.modules():
        if isinstance(part, MaxPool):
            part.__class__ = Pool
    return bare


def plain(module: nn.Module) -> nn.Module:
    """A copy with SpikingJelly's neurons; all their settings live in attributes, so they stay."""
    bare = pooled(module)
    for part in bare.modules():
        if isinstance(part, LIF | PLIF):
            part.__class__ = neuron.LIFNode if isinstance(part, LIF) else neuron.ParametricLIFNode
    return bare


def every_step(model: nn.Module) -> nn.Module:
    """Let a model compute its first layer at every time step: no two share memory."""
    blocks = model.get_submodule("blocks")
    blocks.register_forward_pre_hook(lambda _module, args: (args[0].contiguous(),))
    return model


def convolutions(model: nn.Module, x: Tensor) -> Forward:
    """All layers with weights, each on what it gets there, and nothing between them."""
    calls: list[tuple[nn.Module, Tensor]] = []
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, PackedConv2d)
    layers = [part for part in model.modules() if isinstance(part, kinds)]
    hooks = [
        layer.register_forward_pre_hook(lambda part, args: calls.append((part, args[0].clone())))
        for layer in layers
    ]
    model(x)
    for hook in hooks:
        hook.remove()

    def forward(_: Tensor) -> None:
        for layer, inputs in calls:
            layer(inputs)

    return forward


def timed(forward: Forward, x: Tensor, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        forward(x)
    return (time.perf_counter() - begin) / repeats


def race(runners: dict[str, Forward], x: Tensor) -> dict[str, Any]:
    """Median seconds of each, and quartiles of the ratio of the first to each other."""
    slowest = max([timed(f, x, 1) for f in runners.values() for _ in range(2)][1::2])
    repeats = max(1, int(0.05 / slowest))
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    begin = time.perf_counter()
    while (pairs := len(seconds["plain"])) < 5 or (
        pairs < PAIRS and time.perf_counter() - begin < SECONDS
    ):
        for name in list(runners)[:: 1 if pairs % 2 else -1]:
            seconds[name].append(timed(runners[name], x, repeats))
    arrays = {name: np.array(values) for name, values in seconds.items()}
    return {
        "pairs": len(arrays["plain"]),
        "seconds": {name: float(np.median(values)) for name, values in arrays.items()},
        "ratio": {
            name: np.quantile(arrays["plain"] / values, (0.25, 0.5, 0.75)).tolist()
            for name, values in arrays.items()
            if name != "plain"
        },
    }


def alone(layer: nn.Module) -> Forward:
    """A neuron layer from rest."""

    def forward(x: Tensor) -> Tensor:
        reset(layer)
        spikes: Tensor = layer(x)
        return spikes

    return forward


def rows() -> list[dict[str, Any]]:
    found = []
    for shape in LAYERS:
        layer, x = lif(), torch.randn(shape) * 2 + 0.5
        runners = {"plain": alone(plain(layer)), "all": alone(layer)}
        same = {"identical": torch.equal(runners["plain"](x), runners["all"](x))}
        found.append({"what": f"one layer {list(shape)}"} | race(runners, x) | same)
        print(found[-1], flush=True)
    pools, x = {"plain": Pool(), "all": MaxPool()}, torch.randn(1, *POOLED)
    same = {"identical": torch.equal(pools["plain"](x), pools["all"](x))}
    found.append({"what": f"pooling {list(x.shape)}"} | race(dict(pools), x) | same)
    print(found[-1], flush=True)
    for name, (model, size) in cases().items():
        model.eval()
        runners = {
            "plain": every_step(plain(model)),
            "neurons": every_step(pooled(model)),
            "all": model,
        }
        for batch in BATCHES:
            x = torch.randn(batch, *size)
            if x.numel() * model.time_steps > LARGEST:
                continue
            begin = time.perf_counter()
            runners["quick"] = quick(model, x if batch > 1 else x.expand(2, -1, -1, -1))
            made = time.perf_counter() - begin
            before, after = runners["plain"](x), runners["all"](x)
            changed = before.argmax(1) != runners["quick"](x).argmax(1)
            row = {"what": name, "time_steps": model.time_steps, "batch": batch}
            row |= race({**runners, "bound": convolutions(runners["quick"], x)}, x) | {
                "identical": torch.equal(before, after),
                "changed": int(changed.sum()),
                "made": made,
            }
            found.append(row)
            print(row, flush=True)
    return found


def page(found: list[dict[str, Any]]) -> str:
    head = [
        "| network | T | batch | plain, ms | here, times as fast | neurons alone | same output"
        " | `quick`, times as fast | predictions changed | pays from, images"
        " | convolutions alone |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        changed = row.get("changed", "")
        head.append(
            f"| {row['what']} | {row.get('time_steps', '')} | {row.get('batch', '')} "
            f"| {row['seconds']['plain'] * 1e3:.2f} | {told(row, 'all')} | {told(row, 'neurons')} "
            f"| {'bit for bit' if row['identical'] else 'no'} | {told(row, 'quick')} "
            f"| {changed} | {pays(row)} | {told(row, 'bound')} |"
        )
    note = "Times as fast as plain: the median of neighbouring runs, and quartiles."
    return "\n".join([*head, "", note, f"{described()}.", ""])


def pays(row: dict[str, Any]) -> str:
    """Images after which ``quick`` has won back the time that it took to make."""
    if "made" not in row:
        return ""
    saved = (row["seconds"]["all"] - row["seconds"]["quick"]) / row["batch"]
    return f"{row['made'] / saved:,.0f}" if saved > 0 else "never"


def told(row: dict[str, Any], name: str) -> str:
    """A ratio with its quartiles."""
    if name not in row["ratio"]:
        return ""
    low, middle, high = row["ratio"][name]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        found = rows()
    save("throughput", found)
    (RESULTS / "throughput.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()

"""docs/reproduce-imagenet.md without ImageNet: every command of the page, and what it takes.

    python benchmarks/reproduce_imagenet.py [MODEL ...] [--classes N] [--folder FOLDER]

``MODEL`` is sdt_v2_15m (when none is given), sdt_v2_31m, sdt_v2_55m_kd or another ImageNet model.
Made for it, in FOLDER: images in ImageNet's layout, one per class and part, and a full-size network
with random weights in a file as the official training script writes it. Its head is the nearest
prototype of the validation images, so the network is right on all of them and pruning shows. Fewer
classes than ImageNet has are quicker, and all else is the same.

The commands are read off the page and run as they stand but for: cpu instead of cuda, one process,
one time step, batches of 8, one group at one rate, one epoch, and 60 points to lose, as accuracies
mean nothing here. Other processes may share the cores, so processor seconds are given beside
seconds. Commands that are in the results are not run again; runs in FOLDER go on.
results/reproduce_imagenet.json and .md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import RESULTS, described, save
from PIL import Image
from torch import Tensor, nn

from primesvt.channels import trace
from primesvt.channels.widths import RATES, widths
from primesvt.data.locations import find_pools
from primesvt.models import create_model, model_entry, to_official
from primesvt.profiling.memory import (
    membrane_bytes,
    parameter_bytes,
    parameter_count,
    peak_activation_bytes,
)

PAGE = Path(__file__).parent.parent / "docs" / "reproduce-imagenet.md"
CHECKPOINT, DATA = "checkpoint-199.pth", "imagenet"
SELECTION = 25_000  # images of the real validation set that layers are probed on
BATCH = "8"
INSTEAD = {
    "--device": "cpu",
    "--time-steps": "1",
    "--batch-size": BATCH,
    "--workers": "0",
    "--max-accuracy-drop": "60",
    "--epochs": "1",
    "--nproc-per-node": "1",
}
FEW = ["--include", "*.block4_1.mlp.fc1", "--rates", "0.5"]  # of every prune
LIMITS_NOT_MET = 3
CLASSES = 1000
# In a small process of its own: a child's peak counts what its parent held when it was started.
WATCH = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
PART_SEEDS = {"val": 0, "train": 1}
ALIVE = 12  # images that batch norms are set on
FIRES_AT = 2.0  # of a leaky neuron with tau 2 and threshold 1, in its first step


def commands() -> Iterator[str]:
    """The commands of the page, in their order."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))


def adapted(command: str) -> list[str]:
    """The same command for this machine and few images."""
    words = shlex.split(command)
    for place, word in enumerate(words[:-1]):
        words[place + 1] = INSTEAD.get(word, words[place + 1])
    program = words[0]
    if "prune" in words[:2]:
        words += FEW
    module = {"primesvt": "primesvt", "torchrun": "torch.distributed.run"}[program]
    return [sys.executable, "-m", module, *words[1:]]


def run(command: str, folder: Path) -> dict[str, Any]:
    """Run a command to its end; what it took, its children included."""
    begin, output = time.perf_counter(), folder / "output.txt"
    with output.open("w") as file:
        watched = subprocess.run(
            [sys.executable, "-c", WATCH, *adapted(command)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
            check=True,
        )
    code, processor, peak = json.loads(watched.stdout)
    if code not in (0, LIMITS_NOT_MET):
        raise RuntimeError(f"{command}\nended with {code}:\n{output.read_text()}")
    return {
        "command": command,
        "exit": code,
        "seconds": round(time.perf_counter() - begin, 1),
        "processor_seconds": round(processor, 1),
        "peak_bytes": peak * 1024,
    }


def make_images(folder: Path, classes: int) -> None:
    """One image per class and part, as large as ImageNet's usually are."""
    for part, seed in PART_SEEDS.items():
        generator = np.random.default_rng(seed)
        for number in range(classes):
            place = folder / DATA / part / f"n{number:08d}"
            file = place / f"{part}_{number:08d}.JPEG"
            coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3))
            pixels = np.clip(coarse + generator.integers(-20, 21, (6, 8, 3)), 0, 255)
            if not file.exists():
                place.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)


def make_checkpoint(name: str, folder: Path, classes: int) -> nn.Module:
    """Random weights whose neurons fire, and a head that knows every validation image."""
    torch.manual_seed(0)
    model = create_model(name, time_steps=1, num_classes=classes)
    if not (folder / CHECKPOINT).exists():
        images: Any = find_pools(folder / DATA / "val", model_entry(name).data).test
        _enliven(model, torch.stack([images[place][0] for place in range(ALIVE)]))
        _learn_by_heart(model, (images[place][0][None] for place in range(len(images))))
        content = {"model": to_official(model), "epoch": 199}
        torch.save(content, folder / "unfinished.pth")
        (folder / "unfinished.pth").rename(folder / CHECKPOINT)
    return model


def _enliven(model: nn.Module, images: Tensor) -> None:
    """Batch norms that give every neuron a mean of zero and a deviation of two on some images."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        nn.init.constant_(norm.weight, 2.0)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def _learn_by_heart(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Half of the last spikes fire on half of the images; the head is the nearest of them."""
    seen: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0].flatten(3).mean(-1)[0, 0])

    listening = model.head.register_forward_pre_hook(watch)
    with torch.no_grad():
        for image in images:
            model(image)
        listening.remove()
        potentials = torch.stack(seen)
        last = [norm for norm in model.blocks.modules() if isinstance(norm, nn.BatchNorm1d)][-1]
        last.bias += FIRES_AT - potentials.median(0).values
        spikes = (potentials >= potentials.median(0).values).float()
        centred = spikes - spikes.mean(0)
        for layer in (model.head.fc, model.head.fc_kd):
            if layer is not None:
                layer.weight.copy_(centred)
                layer.bias.copy_(-centred @ spikes.mean(0) - centred.square().sum(1) / 2)


def facts(model: nn.Module, name: str, classes: int) -> dict[str, Any]:
    """What the work with all images depends on."""
    graph = trace(model, torch.zeros(1, *model_entry(name).data.input_size))
    probes = sum(len(widths(group.size, RATES)) for group in graph.prunable())
    return {
        "parameters": parameter_count(model),
        "parameter_bytes": parameter_bytes(model),
        "classes": classes,
        "groups": len(graph.prunable()),
        "layer_probes": probes,
        "probed_images": probes * SELECTION,
    }


def at_published_steps(model: nn.Module, name: str) -> dict[str, int]:
    """Bytes of activations and membrane potentials per image, at the published time steps."""
    image = (torch.zeros(1, *model_entry(name).data.input_size),)
    before, model.time_steps = model.time_steps, model_entry(name).config.time_steps
    found = {
        "time_steps": model.time_steps,
        "activation_bytes": peak_activation_bytes(model, image),
        "membrane_bytes": membrane_bytes(model, image),
    }
    model.time_steps = before
    return found


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """What the networks are, and a line per command and network."""
    names = [name for name in rows if "published_steps" in rows[name]]
    lines = [
        "# The commands of docs/reproduce-imagenet.md, on made-up images and random weights\n",
        "Made by `python benchmarks/reproduce_imagenet.py`, which says what is changed: one process"
        f" and thread on a CPU, one time step, batches of {BATCH}, one group at one rate, one"
        " epoch. Memory is the peak of the whole process.\n",
        "| network | parameters | classes | groups | layer probes (9 rates) | images in them, of"
        f" {SELECTION:,} each | activations, potentials per image at the published time steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        known, steps = rows[name]["facts"], rows[name]["published_steps"]
        lines.append(
            f"| {name} | {known['parameters']:,} ({known['parameter_bytes'] / 1e6:.1f} MB)"
            f" | {known['classes']:,} | {known['groups']} | {known['layer_probes']}"
            f" | {known['probed_images']:,}"
            f" | {steps['activation_bytes'] / 1e6:.1f}, {steps['membrane_bytes'] / 1e6:.1f} MB"
            f" ({steps['time_steps']}) |"
        )
    lines += [
        "\n| command | network | peak memory, MB | processor seconds | seconds | exit |",
        "|---|---|---|---|---|---|",
    ]
    for command in commands():
        for name in names:
            found = [row for row in rows[name]["commands"] if row["command"] == command]
            lines += [
                f"| `{_short(command)}` | {name} | {row['peak_bytes'] / 1e6:,.0f}"
                f" | {row['processor_seconds']:,.0f} | {row['seconds']:,.0f} | {row['exit']} |"
                for row in found
            ]
    return "\n".join([*lines, "", f"{described()}.", ""])


def _short(command: str) -> str:
    """A command without what is the same in all of them."""
    same = "device|batch-size|workers|time-steps|data|max-accuracy-drop|learning-rate"
    return re.sub(rf" --({same}) \S+", "", command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["sdt_v2_15m"])
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "reproduce")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "reproduce_imagenet.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in asked.models:
        folder = asked.folder / f"{name}_{asked.classes}"
        key = name if asked.classes == CLASSES else f"{name}, {asked.classes} classes"
        folder.mkdir(parents=True, exist_ok=True)
        make_images(folder, asked.classes)
        model = make_checkpoint(name, folder, asked.classes)
        known = facts(model, name, asked.classes)
        if rows.get(key, {}).get("facts") != known:
            rows[key] = {"facts": known, "commands": []}
        rows[key]["published_steps"] = at_published_steps(model, name)
        for command in commands():
            if all(row["command"] != command for row in rows[key]["commands"]):
                rows[key]["commands"].append(row := run(command, folder))
                save("reproduce_imagenet", rows)
                (RESULTS / "reproduce_imagenet.md").write_text(markdown(rows))
                print(key, row, flush=True)


if __name__ == "__main__":
    main()

"""Train small networks side by side on one GPU until a deadline: T = 1, then T = 4 from that.

    python benchmarks/gpu_training.py --minutes 8 --out OUT sdt_v2 spikformer qkformer

One process a network, each through the loop of ``primesvt train``. The number of epochs follows
from how long the first ones took, so that the learning rate is zero at the deadline: two thirds of
the time for T = 1, the rest for T = 4. ``OUT/NAME_t1`` and ``OUT/NAME_t4`` are folders
as `primesvt train` writes them. `--device cpu` tries it out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from primesvt.distributed import ProcessGroup
from primesvt.training import TrainRecipe
from primesvt.training.folder import TrainingFolder
from primesvt.training.run import _finished, _prepared
from primesvt.training.snapshot import repeatable

DATA = "data/cifar10"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sdt_v2": (
        "sdt_v2_small",
        {
            "embed_dims": (32, 48, 72, 80),
            "num_heads": 4,
            "conv_depths": (0, 1, 1),
            "depths": (2, 1),
            "strides": (1, 2, 2, 1, 1),
        },
    ),
    "sdt_v2_2m": (
        "sdt_v2_small",
        {
            "embed_dims": (48, 80, 128, 160),
            "num_heads": 4,
            "conv_depths": (1, 1, 1),
            "depths": (2, 1),
            "strides": (1, 2, 2, 1, 1),
        },
    ),
    "spikformer": (
        "spikformer_small",
        {"embed_dim": 112, "depth": 4, "num_heads": 8, "pooling_stat": "0011"},
    ),
    "qkformer": (
        "qkformer_small",
        {
            "layout": "cifar",
            "embed_dims": (24, 56, 120),
            "depths": (1, 1, 2),
            "num_heads": 8,
            "proj_neuron": "per_image",
        },
    ),
}
FIRST = 2 / 3  # of the time, for one time step
FINISH = 8.0  # seconds to measure the result in
MEASURED = {1: range(2, 13), 4: range(2, 6)}  # after these epochs their number is set anew


def recipe_of(name: str, time_steps: int, out: Path, *, seed: int, device: str) -> TrainRecipe:
    """How a network is trained, with as many epochs as nothing would stop."""
    model, options = NETWORKS[name]
    later = time_steps > 1
    return TrainRecipe(
        model=model,
        model_options={"time_steps": time_steps, **options},
        start=str(out / f"{name}_t1") if later else None,
        data=DATA,
        epochs=1000,
        batch_size=256,
        learning_rate=0.001 if later else 0.005,
        warmup_epochs=0.5 if later else 2,
        ema=0.996,
        norm_weight=2.0,
        augmentation={"shift": 4, "flip": True, "mixup": 0.1},
        seed=seed,
        precision="bf16" if device == "cuda" else "fp32",
        compile=device == "cuda",
    )


def train_until(recipe: TrainRecipe, deadline: float, folder: Path, device: str) -> None:
    """Train as many epochs as end before a deadline, a time of the monotonic clock."""
    place = torch.device(device)
    with repeatable(recipe.seed, recipe.threads, place):
        fit = _prepared(recipe, ProcessGroup.start(place), 0)
        times: list[float] = []
        last = time.monotonic()
        while len(times) < fit.recipe.epochs:
            fit.loop.epoch(lambda *_: None)
            judged = fit.loop.result
            fit.best.offer(judged, fit.score(fit.splits.selection, judged).accuracy)
            now = time.monotonic()
            times.append(now - last)
            last = now
            done, usual = len(times), sorted(times[-3:])[len(times[-3:]) // 2]
            if done in MEASURED[fit.model.time_steps]:
                more = int((deadline - FINISH - now) / usual)
                fit.recipe = fit.recipe.changed(epochs=max(done, 3, done + more))
                fit.loop.learning = fit.recipe
            elif done > 2 and now + usual > deadline:
                fit.recipe = fit.recipe.changed(epochs=done)
            row = {"epoch": done, "of": fit.recipe.epochs, "seconds": round(times[-1], 2)}
            told = row | {"selection": fit.best.accuracies[-1], "loss": fit.loop.losses[-1]}
            print(json.dumps({"folder": folder.name, **told}), flush=True)
        made = TrainingFolder(folder, recipe=fit.recipe, context=fit.context())
        made.create()
        record = _finished(fit, made, f"python {' '.join(sys.argv)}")
        print(json.dumps({"folder": folder.name, "test": record.test and record.test.accuracy}))


def main() -> None:
    """Train the networks asked for; without ``--alone`` one process each."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="train one network in this process")
    asked = parser.parse_args()
    if not asked.alone:
        words = ["--minutes", str(asked.minutes), "--out", str(asked.out), "--alone"]
        words += ["--device", asked.device, "--seed", str(asked.seed)]
        command = [sys.executable, __file__]
        running = [subprocess.Popen([*command, name, *words]) for name in asked.networks]
        raise SystemExit(max(process.wait() for process in running))
    (name,) = asked.networks
    begin, seconds = time.monotonic(), 60 * asked.minutes
    for time_steps, share in ((1, FIRST), (4, 1.0)):
        recipe = recipe_of(name, time_steps, asked.out, seed=asked.seed, device=asked.device)
        folder = asked.out / f"{name}_t{time_steps}"
        train_until(recipe, begin + share * seconds, folder, asked.device)


if __name__ == "__main__":
    main()

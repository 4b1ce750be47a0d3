"""Kills a training at random moments, resumes it each time, and compares the weights bit for bit.

    python benchmarks/killed_training.py [--kills 10] [--seed 0]

writes results/killed_training.json. The training is a short one of the bundled digits, with all
that has a state: averaged weights, mixup, CutMix, bfloat16, augmentation. Each start is killed
(SIGKILL) after a random time within its first epochs; the last one is left to end.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import save

from primesvt.training.snapshot import Snapshot

RECIPE = """
model: sdt_v2_digits
data: digits
epochs: 40
batch_size: 32
norm_weight: 2.0
ema: 0.99
precision: bf16
augmentation: {shift: 1, rotate: 10, mixup: 0.2, cutmix: 1.0}
"""


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command that a user types."""
    words = ["-m", "primesvt", "train", "--recipe", str(recipe), "--out", str(out)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, *words], stdout=quiet, stderr=quiet)


def killed(recipe: Path, out: Path, wait: float) -> dict[str, int]:
    """Kill one start some seconds after its first new snapshot; returns where it will go on."""
    state = out / "state.safetensors"
    before = state.stat().st_mtime_ns if state.exists() else 0
    with start(recipe, out) as process:
        while not state.exists() or state.stat().st_mtime_ns == before:
            time.sleep(0.02)
            assert process.poll() is None, "it ended before it could be killed; more epochs"
        time.sleep(wait)
        process.kill()
    facts = Snapshot.load(state).facts
    return {"epochs": len(facts["losses"]), "step": facts["step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.yaml")
        recipe.write_text(RECIPE)
        whole, out = Path(folder, "whole"), Path(folder, "out")
        assert start(recipe, whole).wait() == 0
        moments = [killed(recipe, out, draw.uniform(0, 8)) for _ in range(asked.kills)]
        assert start(recipe, out).wait() == 0
        name = "model/model.safetensors"
        same = (whole / name).read_bytes() == (out / name).read_bytes()
        records = [json.loads((place / "record.json").read_text()) for place in (whole, out)]
        curves = [(r["loss"], r["selection_accuracy"], r["kept_epoch"]) for r in records]
    result = {
        "killed_after": moments,
        "same_weights_bit_for_bit": same,
        "same_losses_and_accuracies": curves[0] == curves[1],
    }
    save("killed_training", result)
    print(json.dumps(result, indent=1))
    sys.exit(not all([same, curves[0] == curves[1]]))


if __name__ == "__main__":
    main()

"""Images per second of `primesvt train`, with and without each thing that can make it quicker.

    python benchmarks/training_speed.py DATA [--recipe recipes/cifar10_strong_sdt_v2.yaml]

writes results/training_speed.json and .md, in about six minutes, most of them compiling.

One thread, in one process: all variants take a few steps in turn, over and over, in changing order,
so that other load on the machine meets all; figures are the median, least and largest of the
rounds, by processor time. *As before* decodes images again whenever they do not fit into the memory
of the image set, in single precision, with `torch.compile`. *Channels last* and *fused optimizer*
are measured here and not used: the table says what they would bring.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, described, save
from torch import nn
from torch.nn import functional as F

from primesvt.data import load_data
from primesvt.distributed import SINGLE_PROCESS
from primesvt.models import create_model, model_entry
from primesvt.training import TrainRecipe, loop, read_train_recipe

ROUNDS, STEPS = 7, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "not compiled": {"once": True, "compile": False},
    "as before": {},
    "images decoded once": {"once": True},
    "images decoded once, channels last": {"once": True, "channels_last": True},
    "images decoded once, fused optimizer": {"once": True, "fused": True},
    "images decoded once, bf16": {"once": True, "bf16": True},
}


class Variant:
    """A training of its own, which takes a few steps at a time."""

    def __init__(
        self,
        recipe: TrainRecipe,
        images: Any,
        *,
        once: bool = False,
        compile: bool = True,
        bf16: bool = False,
        channels_last: bool = False,
        fused: bool = False,
    ) -> None:
        torch.manual_seed(0)
        model = create_model(recipe.model, **recipe.model_options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.weight, recipe.norm_weight)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        loop.IN_MEMORY = 2**31 if once else 0
        self.loop = loop.TrainingLoop(
            model,
            images,
            recipe.changed(compile=False),
            loss=lambda output, _, targets: F.cross_entropy(output.float(), targets),
            processes=SINGLE_PROCESS,
            fill=torch.zeros(1),
            classes=model.config.num_classes,
            bf16=bf16,
        )
        if compile:  # not by the loop, which would make all before it compile again
            self.loop.network = torch.compile(model)
        if fused:
            for group in self.loop.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
        self.loop.model.train()
        self.loop.batches.begin()
        self.batches = iter(self.loop.batches)
        self.rates: list[float] = []

    def take(self, steps: int) -> float:
        """Steps by this many batches; returns processor seconds."""
        begin = time.process_time()
        for images, targets in itertools.islice(self.batches, steps):
            self.loop._take(images, targets)
        return time.process_time() - begin

    def round(self, batch: int) -> None:
        """One figure more."""
        self.rates.append(STEPS * batch / self.take(STEPS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of CIFAR-10 (train and test parquet)")
    parser.add_argument("--recipe", default="recipes/cifar10_strong_sdt_v2.yaml", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_train_recipe(asked.recipe)
    config = model_entry(recipe.model).data
    images = load_data(asked.data, data_config=config, held_out=True).train
    assert images is not None
    for index in range(len(images)):  # fills the memory that an image set has, as an epoch does
        images[index]
    variants = {}
    for name, options in VARIANTS.items():
        variants[name] = Variant(recipe, images, **options)
        variants[name].take(2)  # compiles, and decodes where that is done once
        print(f"{name}: ready", flush=True)
    draw = random.Random(0)
    for _ in range(ROUNDS):
        for name in draw.sample(list(variants), len(variants)):
            variants[name].round(recipe.batch_size)
    rows = {
        name: {
            "median": round(statistics.median(variant.rates), 1),
            "least": round(min(variant.rates), 1),
            "largest": round(max(variant.rates), 1),
        }
        for name, variant in variants.items()
    }
    save("training_speed", {"recipe": recipe.to_dict(), "variants": rows})
    (RESULTS / "training_speed.md").write_text(page(rows) + "\n")


def page(rows: dict[str, dict[str, float]]) -> str:
    """The table."""
    base = rows["as before"]["median"]
    lines = [
        "# Images per second of training",
        "",
        "`python benchmarks/training_speed.py DATA`. " + (__doc__ or "").split("\n\n")[-1].strip(),
        "",
        "| training steps | images per second | least .. largest | against *as before* |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['median']} | {row['least']} .. {row['largest']} "
            f"| {row['median'] / base:.2f} |"
        )
    return "\n".join([*lines, "", described()])


if __name__ == "__main__":
    main()

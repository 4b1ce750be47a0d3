"""Which learning rate a short fine-tuning needs, as a part of the training's.

    python benchmarks/finetune_rate.py digits|CIFAR-FOLDER [MODEL ...]

Networks pruned with ``allocate`` and refit to two savings, fine-tuned for a tenth of their
training. The rate is chosen by the selection images; the test set is shown beside. Made row by row
into results/finetune_rate.json; rows that are there are not made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from checkpoints import CHECKPOINTS, DIGITS, ROOT
from machine import RESULTS, described, save

from primesvt import Constraints, prune
from primesvt.checkpoint.load import open_model
from primesvt.training.finetuning import finetune
from primesvt.training.record import recorded_recipe

RUNS = ROOT / "runs" / "finetune_rate"
CIFAR = (CHECKPOINTS / "cifar10_sdt_v2_seed0", CHECKPOINTS / "cifar10_qkformer_seed0")
SAVINGS = (0.55, 0.7)
PARTS = (10, 3, 30)
TABLE = RESULTS / "finetune_rate.json"


def pruned(source: Path | str, data: str, saving: float) -> Path:
    """The folder of a run, made once."""
    folder = RUNS / f"{Path(source).name}-{saving:g}"
    if not (folder / "metrics.json").exists():
        limits = Constraints(max_accuracy_drop=40, min_memory_saving=saving, stop_at_saving=True)
        options = {"importance": "obs", "recovery": "refit", "gate": "point", "confirm": False}
        size = 450 if data == "digits" else 128
        prune(
            open_model(source).model,
            data=data,
            constraints=limits,
            batch_size=size,
            out=folder,
            **options,
        )
    return folder


def measure(source: Path | str, data: str, saving: float, part: int) -> dict[str, Any]:
    training = recorded_recipe(source)
    assert training is not None
    recipe = {
        "learning_rate": training.learning_rate / part,
        "compile": data != "digits",
    }
    record = finetune(
        pruned(source, data, saving),
        teacher=source,
        data=data,
        recipe=recipe,
        out=RUNS / f"{Path(source).name}-{saving:g}-tuned-{part}",
    ).record
    return {
        "model": Path(source).name,
        "saving": saving,
        "part": part,
        "epochs": record.recipe["epochs"],
        "seconds": record.seconds,
        "kept_epoch": record.kept_epoch,
        "loss": list(record.loss),
        "selection": list(record.selection_accuracy),
        "test_before": record.before.test.accuracy,
        "test": record.test.accuracy,
        "test_unpruned": record.unpruned.test.accuracy,
    }


def known() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else []


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Learning rate of a short fine-tuning\n",
        "Made by `python benchmarks/finetune_rate.py`: a tenth of the training's epochs, peak"
        " rate as a part of the training's. *Selection*: before, then after every epoch, in %; the"
        " best is kept. *Gain*: points of it. *Test*: points gained on images that chose nothing.",
        "",
        "| model | saved | rate | selection | gain | test |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["model"], r["saving"], r["part"])):
        selection = " ".join(f"{100 * value:.1f}" for value in row["selection"])
        lines.append(
            f"| {row['model']} | {row['saving']:.0%} | 1/{row['part']} | {selection}"
            f" | {_gain(row):.2f} | {100 * (row['test'] - row['test_before']):.2f} |"
        )
    lines += ["", "Mean gains:\n", "| data | rate | networks | selection | last epoch | test |"]
    lines.append("|---|---|---|---|---|---|")
    for kind, part in sorted({(_kind(row), row["part"]) for row in rows}):
        own = [row for row in rows if (_kind(row), row["part"]) == (kind, part)]
        last = mean(100 * (row["selection"][-1] - row["selection"][0]) for row in own)
        test = mean(100 * (row["test"] - row["test_before"]) for row in own)
        lines.append(
            f"| {kind} | 1/{part} | {len(own)} | {mean(map(_gain, own)):.2f} | {last:.2f}"
            f" | {test:.2f} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def _kind(row: dict[str, Any]) -> str:
    return "CIFAR-10" if "cifar" in row["model"] else "digits"


def _gain(row: dict[str, Any]) -> float:
    return 100 * (max(row["selection"]) - row["selection"][0])


def main() -> None:
    torch.set_num_threads(1)
    data = sys.argv[1]
    sources = DIGITS if data == "digits" else CIFAR
    for part in PARTS:
        for source in sources:
            if sys.argv[2:] and Path(source).name not in sys.argv[2:]:
                continue
            for saving in SAVINGS:
                key = (Path(source).name, saving, part)
                if key in {(r["model"], r["saving"], r["part"]) for r in known()}:
                    continue
                row = measure(source, data, saving, part)
                rows = [*known(), row]
                save("finetune_rate", rows)
                (RESULTS / "finetune_rate.md").write_text(markdown(rows))
                print(*key, row["selection"], f"{row['test_before']} -> {row['test']}", flush=True)


if __name__ == "__main__":
    main()

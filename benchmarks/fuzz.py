"""Throws damaged and hostile inputs at all commands and Python calls, and kills what writes.

    python benchmarks/fuzz.py [--count 2200] [--seed 0] [--controls 200]
    python benchmarks/fuzz.py --kills

The first writes results/fuzz.json and results/fuzz.md: for each kind of input, how many led to a
traceback, to exit code 70 (a fault of the tool), to a hang, to a file left half written, to code
that ran, to a message of more than one line or with control characters; and how many valid inputs
were refused. The second writes results/fuzz_kills.json: `prune`, `train`, `finetune` and `export`
are killed before and after every one of their writes, started again, and compared byte for byte
with a run that was not. All must be zero. Inputs are drawn from the seed, in processes that are
forked after all imports.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import RESULTS, described, save
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import primesvt
from primesvt._guard import Fault
from primesvt.cli import main as command
from primesvt.cli.console import PlainProgress
from primesvt.models import create_model, to_official

FAILURES = (
    "traceback",
    "exit 70",
    "refused control",
    "hang",
    "half-written file",
    "code executed",
    "not one printable line",
)
PATIENCE = 60  # seconds until an input counts as a hang
MARKER = "executed"
EVIL_NAMES = (
    "a\x1b[2Jb",
    "x\u202ey",
    "long" * 2000,
    "[/bold]",
    "a\nb",
    "<script>",
    "\ud800",
    "%s{}",
)
RAW = (
    *("NaN", "Infinity", "1e999", "-1", "0", "1", "true", "null", '""', "[]", "{}", "1e308"),
    *("9" * 30, "9" * 5000, "[" * 100_000, '"\\u001b[2J\\u202e"', '"\\ud800"', '"../../x"'),
    *('"' + "x" * 5000 + '"', "[[[[[[[]]]]]]]", '{"a": {"b": {}}}', "0.5", "[1, 2]", '"7"'),
)
QUICK = (
    *("prune", "sdt_v2_digits", "--include", "blocks.block4_0.mlp.fc1", "--rates", "0.5"),
    *("--preset", "paper", "--no-verify", "--max-accuracy-drop", "10", "--batch-size", "450"),
)
RECIPE = {"model": "sdt_v2_digits", "data": "digits", "epochs": 1, "batch_size": 512}
TUNE = ("--epochs", "1", "--batch-size", "512")


@dataclass
class Material:
    """Valid files to damage, made once."""

    place: Path
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def make(cls, place: Path) -> Material:
        made = cls(place)
        torch.manual_seed(0)
        state = to_official(create_model("sdt_v2_digits", pretrained=True))
        torch.save(state, place / "new.pth")
        torch.save({"model": state}, place / "old.pth", _use_new_zipfile_serialization=False)
        save_file(state, place / "tensors.safetensors")
        for name in ("new.pth", "old.pth", "tensors.safetensors"):
            made.files[name] = (place / name).read_bytes()
        with quiet():
            assert command([*QUICK, "--out", str(place / "run")]) == 0
            recipe = place / "train.yaml"
            recipe.write_text(yaml.safe_dump(RECIPE))
            words = ["train", "--recipe", str(recipe), "--out", str(place / "trained")]
            with keeping_state(place / "stopped"):
                assert command(words) == 0
            images(place / "images")
        return made


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


@contextlib.contextmanager
def keeping_state(copy: Path) -> Iterator[None]:
    """Keep a copy of a training's folder as it is before it is finished."""
    from primesvt.training.folder import TrainingFolder

    finish = TrainingFolder.finish

    def noted(folder: TrainingFolder, record: Any) -> None:
        ignored = shutil.ignore_patterns(".lock")
        shutil.copytree(folder.path, copy, dirs_exist_ok=True, ignore=ignored)
        finish(folder, record)

    TrainingFolder.finish = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingFolder.finish = finish  # type: ignore[method-assign]


def images(root: Path, classes: int = 10) -> None:
    for label in range(classes):
        folder = root / "val" / f"{label}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), color=9 * label + number).save(folder / f"{number}.png")


# Damage


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one or several faults."""
    data = bytearray(content)
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(data[: rng.choice([0, 1, 7, 8, 9, 100, rng.randrange(len(data) + 1)])])
    if kind == 1:
        for _ in range(rng.choice([1, 5, 100])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if kind == 2:  # in the head, where sizes are
        for _ in range(rng.choice([1, 3])):
            data[rng.randrange(min(400, len(data)))] = rng.randrange(256)
    if kind == 3:
        start = rng.randrange(len(data))
        data[start : start + rng.randrange(1000)] = b""
    if kind == 4:
        start = rng.randrange(len(data))
        data[start:start] = rng.randbytes(rng.choice([1, 64, 5000]))
    if kind == 5:
        start = rng.randrange(len(data))
        data[start : start + 2000] = bytes(len(data[start : start + 2000]))
    if kind == 6:
        return rng.randbytes(rng.choice([1, 100, 5000]))
    return bytes(data)


def damaged_json(rng: random.Random, content: Any) -> str:
    """JSON text in which one or two values are others, or gone."""
    raws: list[str] = []
    for _ in range(rng.choice([1, 1, 2])):
        content = _replaced(rng, content, raws)
    text = json.dumps(content)
    for number, raw in enumerate(raws):
        text = text.replace(f'"@@{number}@@"', raw)
    return text


def _replaced(rng: random.Random, content: Any, raws: list[str]) -> Any:
    if isinstance(content, dict | list) and content and rng.random() < 0.85:
        names = list(content) if isinstance(content, dict) else range(len(content))
        name = rng.choice(list(names))
        made = dict(content) if isinstance(content, dict) else list(content)
        if rng.random() < 0.15:
            del made[name]
        elif rng.random() < 0.05 and isinstance(made, dict):
            made[rng.choice(EVIL_NAMES)] = made.pop(name)
        else:
            made[name] = _replaced(rng, content[name], raws)
        return made
    raws.append(rng.choice(RAW))
    return f"@@{len(raws) - 1}@@"


def special(rng: random.Random, path: Path) -> None:
    """Something that is no ordinary file."""
    path.unlink(missing_ok=True)
    kind = rng.randrange(6)
    if kind == 0:
        path.symlink_to("/dev/zero")
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path)
    elif kind == 4:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    else:
        path.symlink_to("/dev/null")


class Payload:
    """Leaves a marker if it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


def odd_checkpoint(rng: random.Random, path: Path) -> None:
    """A checkpoint whose content is none that a model could take."""
    state: Any = to_official(create_model("sdt_v2_small"))
    name = rng.choice(list(state))
    kind = rng.randrange(14)
    odd: list[Callable[[], Any]] = [
        lambda: torch.empty(3, 3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8),
        lambda: torch.zeros(1).expand(10**10),
        lambda: torch.zeros(4).as_strided((10**5, 10**5), (0, 0)),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: torch.full((3,), float("nan")),
        lambda: Payload(),
        lambda: rng.choice([None, 3, "text", [1], {"a": 1}]),
        lambda: torch.zeros(0),
    ]
    if kind < len(odd):
        torch.save({**state, name: odd[kind]()}, path)
    elif kind == 10:
        torch.save({rng.choice(EVIL_NAMES[:6]): torch.rand(2), **state}, path)
    elif kind == 11:  # a bomb
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(4):
                archive.writestr(f"archive/data/{number}", bytes(200_000_000))
            archive.writestr("archive/data.pkl", pickle.dumps({}))
    elif kind == 12:
        nested: Any = torch.zeros(1)
        for _ in range(rng.choice([50, 400])):
            nested = {"model": nested}
        torch.save(nested, path)
    else:
        path.write_bytes(pickle.dumps({"a": Payload()}))


def odd_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with another head."""
    length = struct.unpack("<Q", content[:8])[0]
    head = damaged_json(rng, json.loads(content[8 : 8 + length])).encode("utf-8", "surrogatepass")
    return (
        struct.pack("<Q", rng.choice([len(head)] * 5 + [0, 2**63, 2**40]))
        + head
        + content[8 + length :]
    )


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAMLS = (
    BOMB,
    BOMB.replace("a11:", "model:"),
    f"model: !!python/object/apply:os.system ['touch {MARKER}']",
    "model: &m [*m]",
    "model: " + "[" * 5000,
    "model: !!timestamp x",
    "model: !!int ''",
    "seed: 2024-13-45",
    "? [a]\n: b",
    "\x00",
    "model: \x1b[2J",
    "- " * 3000,
    "{" * 3000,
    "model: sdt_v2_digits\nrun: {seed: " + "9" * 5000 + "}",
    "model: sdt_v2_digits\nlimits: {max_accuracy_drop: .inf}",
    "model: sdt_v2_digits\nmethod: {rates: [.nan]}",
    "x" * 2_000_000,
    "%YAML 9.9\n---\na",
    "!!binary x",
    "1: 2",
    "model: sdt_v2_digits\nmodel: 3",
)

# Kinds: each writes an input in the working folder and gives the words of a command, or a call.

Act = list[str] | Callable[[], Any]


def checkpoints(rng: random.Random, at: Path, stuff: Material) -> Act:
    source = rng.choice(list(stuff.files))
    path = at / f"weights{Path(source).suffix}"
    which = rng.random()
    if which < 0.1:
        special(rng, path)
    elif which < 0.35:
        path = path.with_suffix(".pth")
        odd_checkpoint(rng, path)
    elif which < 0.55:
        path = path.with_suffix(".safetensors")
        path.write_bytes(odd_safetensors(rng, stuff.files["tensors.safetensors"]))
    else:
        path.write_bytes(damaged(rng, stuff.files[source]))
    if rng.random() < 0.5:
        return lambda: primesvt.load(path, quiet=True)
    return rng.choice(
        [
            ["inspect", path.name],
            ["evaluate", path.name, "--data", "nowhere"],
            ["apply", str(stuff.place / "run"), path.name, "--out", "small"],
        ]
    )


RUN_FILES = ("metrics.json", "plan.json", "sensitivity.jsonl", "recipe.yaml")
MODEL_FILES = ("model/config.json", "model/model.safetensors")


def _spoil(rng: random.Random, path: Path) -> None:
    """Damage a file of a folder, in the way of its kind."""
    which, content = rng.random(), path.read_bytes()
    if which < 0.1:
        special(rng, path)
    elif which < 0.3:
        path.write_bytes(damaged(rng, content))
    elif which < 0.33:
        path.unlink()
    elif path.suffix == ".safetensors":
        path.write_bytes(odd_safetensors(rng, content))
    elif path.suffix == ".yaml":
        if rng.random() < 0.4:
            path.write_text(rng.choice(YAMLS))
        else:
            text = damaged_json(rng, yaml.safe_load(content))
            path.write_text(text, encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = content.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = damaged_json(rng, json.loads(lines[number]))
        path.write_text("\n".join(lines) + rng.choice(["\n", ""]), encoding="utf-8")
    else:
        path.write_text(damaged_json(rng, json.loads(content)), encoding="utf-8")


def run_folders(rng: random.Random, at: Path, stuff: Material) -> Act:
    run = shutil.copytree(stuff.place / "run", at / "run")
    name = rng.choice([*RUN_FILES, *RUN_FILES, *MODEL_FILES])
    _spoil(rng, run / name)
    uses: dict[str, list[Act]] = {
        "metrics.json": [["report", "run"], [*QUICK, "--out", "run"], ["report", "run", "run"]],
        "plan.json": [["report", "run"], ["apply", "run", "sdt_v2_digits", "--out", "small"]],
        "sensitivity.jsonl": [
            ["report", "run"],
            [*QUICK, "--out", "run"],
            [*QUICK, "--from", "run", "--out", "new"],
        ],
        "recipe.yaml": [
            ["report", "run"],
            [*QUICK, "--out", "run"],
            ["evaluate", "run", "--data", "nowhere"],
            ["finetune", "run", "--data", "nowhere", *TUNE],
            ["export", "run", "--data", "nowhere"],
            ["report", "run", str(stuff.place / "run"), "--out", "both.html"],
        ],
    }
    return rng.choice(
        uses.get(
            name,
            [
                ["inspect", "run"],
                ["report", "run"],
                ["evaluate", "run", "--data", "nowhere"],
                lambda: primesvt.load(run),
                lambda: primesvt.load(run, into=nn.Linear(2, 2)),
            ],
        )
    )


def training_folders(rng: random.Random, at: Path, stuff: Material) -> Act:
    folder = rng.choice(["stopped", "trained"])
    shutil.copytree(stuff.place / folder, at / "out")
    name = (
        "record.json"
        if folder == "trained"
        else rng.choice(["state.safetensors"] * 3 + ["progress.json"])
    )
    path = at / "out" / name
    if name == "state.safetensors" and rng.random() < 0.6:
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        head = json.loads(content[8 : 8 + length])
        facts = damaged_json(rng, json.loads(head["__metadata__"]["facts"]))
        head["__metadata__"]["facts"] = facts
        if rng.random() < 0.2:
            head.pop("__metadata__")
        text = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    else:
        _spoil(rng, path)
    return ["train", "--recipe", str(stuff.place / "train.yaml"), "--out", "out"]


def recipes(rng: random.Random, at: Path, stuff: Material) -> Act:
    pruning = yaml.safe_load((stuff.place / "run" / "recipe.yaml").read_text()) | {
        "data": "nowhere"
    }
    training = {**RECIPE, "data": "nowhere", "learning_rate": 0.1, "augmentation": {"shift": 1}}
    path = at / "recipe.yaml"
    prunes = rng.random() < 0.5
    which = rng.random()
    if which < 0.1:
        special(rng, path)
    elif which < 0.4:
        path.write_text(rng.choice(YAMLS))
    else:
        text = damaged_json(rng, pruning if prunes else training)
        path.write_text(text, encoding="utf-8")
    if prunes:
        return ["prune", "--recipe", path.name, "--data", "nowhere"]
    return rng.choice(
        [
            ["train", "--recipe", path.name, "--data", "nowhere"],
            ["finetune", str(stuff.place / "run"), "--recipe", path.name, "--data", "nowhere"],
        ]
    )


BAD = (
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e20",
    "9" * 30,
    "9" * 5000,
    "",
    "x",
    "\x1b[2J",
    "../../x",
    "1e-400",
)
PLACES = (
    "/proc/x",
    "/dev/null/x",
    "/dev/null",
    "x" * 5000,
    "a\x00b".replace("\x00", "\u202e"),
    "/sys/x",
)

PRUNE_FLAGS = [
    "seed",
    "batch-size",
    "workers",
    "level",
    "rates",
    "channel-multiple",
    "max-accuracy-drop",
    "min-memory-saving",
    "max-parameter-memory",
    "max-latency",
    "race-error",
    "memory-limit",
    "time-steps",
    "set",
    "include",
    "override",
    "latency-batch",
    "max-membrane",
]
EVALUATE_FLAGS = ["seed", "batch-size", "workers", "time-steps", "override"]
FINETUNE_FLAGS = [
    "epochs",
    "batch-size",
    "learning-rate",
    "warmup-epochs",
    "distillation",
    "temperature",
    "feature-weight",
    "seed",
    "workers",
    "save-every",
]
TRAIN_FLAGS = ["seed", "batch-size", "workers", "stop-after"]
LOAD_SETTINGS = ["time_steps", "tau", "num_heads", "family", "into"]
MODEL_SETTINGS = [
    "time_steps",
    "num_classes",
    "tau",
    "in_channels",
    "num_heads",
    "depths",
    "embed_dim",
    "x",
]
EXPORT_OPTIONS = ["agreement", "images", "batch_size", "format", "weight_bits", "push", "out"]
FINETUNE_OPTIONS = ["batch_size", "seed", "device", "workers", "save_every", "teacher", "recipe"]
TUNING_FIELDS = ["epochs", "learning_rate", "seed", "batch_size", "augmentation", "x"]

REPOSITORIES = ["../../x", "a/b/c", "", "x y", "-", "\x1b"]
OPTIONS = [
    "seed",
    "batch_size",
    "workers",
    "device",
    "rates",
    "include",
    "policy",
    "importance",
    "recovery",
    "level",
    "policy_options",
    "max_accuracy_drop",
    "min_memory_saving",
    "max_latency",
    "gate",
    "from_run",
    "preset",
    "memory_limit",
    "channel_multiple",
]


def flags(rng: random.Random, at: Path, stuff: Material) -> Act:
    run, bad = str(stuff.place / "run"), rng.choice(BAD)
    device = rng.choice(["cpu:99", "meta", "cuda:99", "abacus", "", "cpu:x", "\x1b[2J"])
    none = ["--data", "nowhere"]
    trains = ["train", "--recipe", str(stuff.place / "train.yaml"), *none]
    return rng.choice(
        [
            ["prune", "sdt_v2_digits", *none, f"--{rng.choice(PRUNE_FLAGS)}", bad],
            ["prune", "sdt_v2_digits", *none, "--device", device],
            ["prune", "sdt_v2_digits", *none, "--out", rng.choice(PLACES)],
            ["evaluate", "sdt_v2_digits", *none, f"--{rng.choice(EVALUATE_FLAGS)}", bad],
            ["evaluate", "sdt_v2_digits", *none, "--device", device],
            ["finetune", run, *none, f"--{rng.choice(FINETUNE_FLAGS)}", bad],
            ["finetune", run, *none, "--device", device],
            ["export", run, *none, f"--{rng.choice(['agreement', 'images', 'batch-size'])}", bad],
            ["export", run, "--format", "hub", "--push", rng.choice(REPOSITORIES)],
            ["export", run, *none, "--out", rng.choice(PLACES)],
            ["report", run, "--out", rng.choice(PLACES)],
            ["apply", run, "sdt_v2_digits", "--out", rng.choice(PLACES)],
            ["inspect", rng.choice([*EVIL_NAMES[:6], *PLACES, ""])],
            ["train", "--recipe", rng.choice(PLACES)],
            [*trains, f"--{rng.choice(TRAIN_FLAGS)}", bad],
            [*trains, "--device", device],
            [rng.choice(["", "x", "--", "-h1", "\x1b"]), bad],
        ]
    )  # fmt: skip


VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 1e20, float("nan"), float("inf"), -0.5, "", "x", "\x1b[2J"),
    *([], {}, (), [None], {"a": 1}, b"x", object, Path("nowhere"), torch.empty(0), "../../x"),
    *(torch.rand(2, 1, 8, 8), torch.full((2, 1, 8, 8), float("nan")), "9" * 5000, 1j, lambda: 3),
)


def python(rng: random.Random, at: Path, stuff: Material) -> Act:
    value, run = rng.choice(VALUES), stuff.place / "run"
    none = {"data": "nowhere"}
    option = rng.choice(OPTIONS)
    model = "sdt_v2_digits"
    calls: list[Callable[[], Any]] = [
        lambda: primesvt.prune(value, **none),
        lambda: primesvt.prune(model, **none, **{option: value}),
        lambda: primesvt.prune(create_model(model), **none, **{option: value}),
        lambda: primesvt.prune(model, data=value if not isinstance(value, str | None) else "no"),
        lambda: primesvt.prune(model, score=3 if value is None else value),
        lambda: primesvt.prune(model, **none, config=value, out=at / "run"),
        lambda: primesvt.prune(model, **none, constraints=value),
        lambda: primesvt.prune(nn.Linear(2, 2).to("meta"), **none),
        lambda: primesvt.load(value),
        lambda: primesvt.load(run, **{rng.choice(LOAD_SETTINGS): value}),
        lambda: primesvt.load(stuff.place / "new.pth", quiet=True, time_steps=value),
        lambda: primesvt.create_model(value),
        lambda: primesvt.create_model(model, **{rng.choice(MODEL_SETTINGS): value}),
        lambda: primesvt.load_data(value),
        lambda: primesvt.load_data("digits", seed=value),
        lambda: primesvt.Limits(max_accuracy_drop=value),
        lambda: primesvt.Limits(min_memory_saving=value, max_latency=value),
        lambda: primesvt.export(value, at / "x.pt2", format="torch-export"),
        lambda: primesvt.export(run, **none, **{rng.choice(EXPORT_OPTIONS): value}),
        lambda: primesvt.finetune(value, **none),
        lambda: primesvt.finetune(run, **none, **{rng.choice(FINETUNE_OPTIONS): value}),
        lambda: primesvt.finetune(run, **none, recipe={rng.choice(TUNING_FIELDS): value}),
        lambda: primesvt.trace(create_model(model), value),
        lambda: primesvt.trace(value, torch.rand(1, 1, 8, 8)),
        lambda: primesvt.Plan.load(value),
        lambda: primesvt.list_models(value),
    ]  # fmt: skip
    return rng.choice(calls)


def data(rng: random.Random, at: Path, stuff: Material) -> Act:
    root = shutil.copytree(stuff.place / "images", at / "images")
    path = root / "val" / str(rng.randrange(10)) / f"{rng.randrange(3)}.png"
    which = rng.random()
    spec = "images"
    if which < 0.15:
        special(rng, path)
    elif which < 0.5:
        path.write_bytes(damaged(rng, path.read_bytes()))
    elif which < 0.65:
        path.parent.rename(
            path.parent.with_name(rng.choice(["a\x1b[2Jb", "x\u202ey", "[b]", "n" * 200]))
        )
    else:
        import numpy as np

        spec = "frames.npz"
        np.savez(at / spec, frames=np.zeros((6, 2, 1, 8, 8), "f4"), labels=np.arange(6))
        content = (at / spec).read_bytes()
        (at / spec).write_bytes(damaged(rng, content))
    return ["evaluate", "sdt_v2_digits", "--data", spec, "--set", "selection"]


KINDS: dict[str, Callable[[random.Random, Path, Material], Act]] = {
    "checkpoints": checkpoints,
    "run folders": run_folders,
    "training folders": training_folders,
    "recipes": recipes,
    "flags": flags,
    "Python calls": python,
    "data": data,
}


def control(rng: random.Random, at: Path, stuff: Material) -> Act:
    """A valid input, which must be taken."""
    run, state = str(stuff.place / "run"), torch.load(stuff.place / "new.pth", weights_only=True)
    wrapped = rng.choice(
        [state, {"model": state}, {"state_dict": state}, {"model_ema": state, "epoch": 3}]
    )
    torch.save(wrapped, at / "good.pth", _use_new_zipfile_serialization=rng.random() < 0.5)
    recipe = yaml.safe_load((stuff.place / "run" / "recipe.yaml").read_text())
    recipe["run"]["seed"] = rng.randrange(2**31)
    (at / "recipe.yaml").write_text(f"shared: &s [1]\n{yaml.safe_dump(recipe)}".partition("\n")[2])
    noted = shutil.copytree(run, at / "run")
    probes = noted / "sensitivity.jsonl"
    if rng.random() < 0.5:  # as an editor may leave it
        probes.write_bytes(probes.read_bytes().rstrip(b"\n"))
    steps = str(rng.randrange(1, 4))
    return rng.choice(
        [
            ["inspect", "good.pth"],
            ["inspect", "run"],
            ["report", "run", "--out", "page.html"],
            ["report", "run", run, "--out", "both.html"],
            ["apply", "run", "good.pth", "--out", "small"],
            ["models"],
            [*QUICK, "--out", "run"],
            ["evaluate", "run", "--set", "selection", "--batch-size", "450"],
            lambda: primesvt.load("good.pth", quiet=True, time_steps=int(steps)),
            lambda: primesvt.load("run"),
            lambda: primesvt.config.read_recipe("recipe.yaml"),
            lambda: primesvt.Plan.load("run"),
            lambda: primesvt.create_model("sdt_v2_digits", time_steps=int(steps)),
            lambda: primesvt.load_data("digits", seed=rng.randrange(100)),
        ]
    )


# Running


def tried(act: Act, valid: bool) -> tuple[str, str]:
    """What is wrong with how an input was met, if anything; and what was said."""
    if callable(act):
        try:
            with quiet():
                act()
        except Fault as error:
            return "exit 70", f"{error} | {_where(error.__cause__)}"
        except (ValueError, TypeError, OSError) as error:
            if valid:
                return "refused control", str(error)
            return ("" if _line(str(error), called=True) else "not one printable line"), str(error)
        except BaseException as error:
            return "traceback", f"{type(error).__name__}: {error} | {_where(error)}"
        return "", "fine"
    with quiet() as (out, err):
        try:
            code: Any = command(act)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            return "traceback", f"{type(error).__name__}: {error} | {_where(error)}"
    said = err.getvalue()
    problem = {70: "exit 70"}.get(code, "" if code in (0, 1, 2, 3, 75) else "traceback")
    if "Traceback" in said:
        problem = "traceback"
    if valid and code != 0:
        problem = "refused control"
    printed = out.getvalue() + said
    if not problem and code == 1 and not (said.count("\n") == 1 and said.startswith("primesvt: ")):
        problem = "not one printable line"
    if not problem and code != 2 and not all(map(_line, printed.splitlines())):
        problem = "not one printable line"
    if code == 70:
        file = said.split()[-1]
        said += Path(file).read_text()[-1500:] if Path(file).is_file() else ""
    return problem, f"{code}: {said}"


def _where(error: BaseException | None) -> str:
    if error is None:
        return ""
    return "".join(traceback.format_exception(error))[-1200:]


def _line(text: str, *, called: bool = False) -> bool:
    """Whether text is a line that a terminal shows as it is; Python shows errors as they are."""
    if called:
        return "\n" not in text.strip() or len(text.splitlines()) < 30
    hidden = any(unicodedata.category(each) in ("Cc", "Cf", "Cs") for each in text)
    return not hidden and len(text) < 4000


LEFT = re.compile(r"\.tmp$|\.unverified$|\.lock$")


def one(number: int, seed: int, controls: int, stuff: Material, at: Path) -> dict[str, Any]:
    """Draw an input, try it in a folder, and look at what is left there."""
    rng = random.Random(f"{seed} {number}")
    valid = number < controls
    kind = "controls" if valid else list(KINDS)[number % len(KINDS)]
    at.mkdir()
    os.chdir(at)
    begin = time.monotonic()
    act = control(rng, at, stuff) if valid else KINDS[kind](rng, at, stuff)
    problem, said = tried(act, valid)
    left = [path.name for path in at.rglob("*") if LEFT.search(path.name)]
    if left:
        problem, said = "half-written file", f"{left} {said}"
    if (at / MARKER).exists():
        problem = "code executed"
    words = " ".join(act)[:200] if isinstance(act, list) else ""
    took = time.monotonic() - begin
    return {
        "number": number,
        "kind": kind,
        "problem": problem,
        "words": words,
        "said": said[:2500],
        "took": took,
    }


def batch(numbers: list[int], seed: int, controls: int, stuff: Material, pipe: int) -> None:
    """Try inputs in this process, one after another, and write what came of each."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, os.fdopen(pipe, "w") as out:
        tempfile.tempdir = place
        for number in numbers:
            signal.alarm(PATIENCE)
            found = one(number, seed, controls, stuff, Path(place, str(number)))
            out.write(json.dumps(found) + "\n")
            out.flush()
            os.chdir("/")
            shutil.rmtree(Path(place, str(number)), ignore_errors=True)
        signal.alarm(0)


def search(count: int, seed: int, controls: int, stuff: Material) -> list[dict[str, Any]]:
    """Try all inputs in forked processes; one that dies or hangs is a finding of its own."""
    found: list[dict[str, Any]] = []
    waiting = list(range(count + controls))
    while waiting:
        read, write = os.pipe()
        process = os.fork()
        if not process:
            os.close(read)
            try:
                batch(waiting[:50], seed, controls, stuff, write)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as lines:
            rows = [json.loads(line) for line in lines]
        status = os.waitpid(process, 0)[1]
        found += rows
        expected = waiting[:50]
        waiting = waiting[len(rows) :]
        if len(rows) < len(expected):
            number = waiting.pop(0)
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            kind = "controls" if number < controls else list(KINDS)[number % len(KINDS)]
            problem = "hang" if hung else "traceback"
            found.append(
                {
                    "number": number,
                    "kind": kind,
                    "problem": problem,
                    "said": f"status {status}",
                    "words": "",
                    "took": PATIENCE,
                }
            )
    return found


# Kills and signals


def works(stuff: Material) -> dict[str, list[str]]:
    """What is killed: commands that write, to be started in a folder with a copy of a run."""
    recipe = stuff.place / "two.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "epochs": 2}))
    return {
        "prune": [*QUICK, "--out", "new"],
        "train": ["train", "--recipe", str(recipe), "--out", "new"],
        "finetune": ["finetune", "run", *TUNE],
        "export to the Hub's layout": ["export", "run", "--format", "hub", "--images", "32"],
        "export with torch.export": ["export", "run", "--format", "torch-export", "--images", "32"],
    }


def started(words: list[str], at: Path, *, when: str = "", count: int = 0, how: int = 0) -> Any:
    """Run a command in a forked process, which gets a signal at a moment.

    Args:
        words: of the command.
        at: the working folder.
        when: ``before`` or ``after`` a write is brought to the disk, or ``stage`` for the first
            word of progress on a stage.
        count: at the how many-eth of those.
        how: the number of the signal.

    Returns:
        The exit code (negative for a signal), the moments there were of each kind, and stderr.
    """
    read, write = os.pipe()
    process = os.fork()
    if not process:
        os.chdir(at)
        signal.alarm(600)
        seen = {"before": 0, "after": 0, "stage": 0}
        sync, stages = os.fsync, set[str]()

        def moment(kind: str) -> None:
            seen[kind] += 1
            if kind == when and seen[kind] == count:
                os.kill(os.getpid(), how)

        def fsync(handle: int) -> None:
            moment("before")
            sync(handle)
            moment("after")

        def told(_: Any, stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages.add(stage)
                moment("stage")

        os.fsync = fsync
        PlainProgress.__call__ = told  # type: ignore[method-assign]
        with quiet() as (_, err):
            code = command(words)
        os.write(write, json.dumps([seen, err.getvalue()[-2000:]]).encode())
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        content = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    seen, said = json.loads(content) if content else ({}, "")
    return code, seen, said


def result(at: Path) -> dict[str, Any]:
    """Every file below a folder, without the times that were taken."""
    return {str(path.relative_to(at)): _timeless(path) for path in at.rglob("*") if path.is_file()}


def _timeless(path: Path) -> Any:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if k not in ("seconds", "images_per_second")}
            return {name: without(each) for name, each in kept.items()}
        return [without(each) for each in value] if isinstance(value, list) else value

    content = path.read_bytes()
    if path.suffix == ".json":
        return without(json.loads(content))
    if path.suffix == ".jsonl":
        return [without(json.loads(line)) for line in content.splitlines()]
    if path.suffix == ".pt2":  # an archive with its own dates
        with zipfile.ZipFile(path) as archive:
            return sorted((each.filename, each.CRC) for each in archive.infolist())
    return content


def kills(stuff: Material, names: list[str]) -> list[dict[str, Any]]:
    """Kill and interrupt every work at every moment, and start it again."""
    unknown = sorted(set(names) - set(works(stuff)))
    if unknown:
        raise SystemExit(f"no work is called {unknown[0]!r}; choose from {', '.join(works(stuff))}")
    rows = []
    for name, words in works(stuff).items():
        if names and name not in names:
            continue
        begin = time.monotonic()
        whole = _fresh(stuff, name, "whole")
        code, seen, said = started(words, whole)
        assert code == 0, said
        expected, problems, count = result(whole), list[str](), 0
        ways = [(when, signal.SIGKILL) for when in ("before", "after")]
        ways += [("stage", how) for how in (signal.SIGTERM, signal.SIGINT)]
        ways += [("before", signal.SIGTERM)]
        for when, how in ways:
            for number in range(1, seen[when] + 1):
                count += 1
                problem = _killed(stuff, name, words, expected, when, number, how)
                if problem:
                    problems.append(f"{how.name} {when} {number} of {seen[when]}: {problem}")
        took = round(time.monotonic() - begin)
        row = {"work": name, "moments": seen, "tried": count, "problems": problems, "took": took}
        print(json.dumps(row, indent=1), flush=True)
        rows.append(row)
    return rows


def _fresh(stuff: Material, *names: str) -> Path:
    at = stuff.place / "-".join(names).replace(" ", "-")
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(stuff.place / "run", at / "run")
    return at


def _killed(
    stuff: Material,
    name: str,
    words: list[str],
    expected: dict[str, Any],
    when: str,
    number: int,
    how: signal.Signals,
) -> str:
    """Kill a work at a moment and start it again; returns what is wrong then, if anything."""
    at = _fresh(stuff, name, "killed")
    code, _, said = started(words, at, when=when, count=number, how=how)
    wanted = -how if how == signal.SIGKILL else 128 + how
    if code != wanted:
        return f"ended with {code}, not {wanted}: {said}"
    if how != signal.SIGKILL:
        left = [path.name for path in at.rglob("*") if LEFT.search(path.name)]
        if left or said.count("\n") != 1:
            return f"left {left} and said {said}"
    code, _, said = started(words, at)
    if code:
        return f"started again it ended with {code}: {said}"
    found = result(at)
    differ = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    return f"other files: {differ}" if differ else ""


def table(found: list[dict[str, Any]]) -> str:
    """The figures by kind, as Markdown."""
    lines = [f"| Kind | Inputs | {' | '.join(FAILURES)} |", f"|---|{'---:|' * (1 + len(FAILURES))}"]
    kinds = ["controls", *KINDS]
    for kind in [*kinds, "all"]:
        rows = [row for row in found if kind in (row["kind"], "all")]
        figures = [sum(row["problem"] == failure for row in rows) for failure in FAILURES]
        lines.append(f"| {kind} | {len(rows):,} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2200)
    parser.add_argument("--controls", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="try this input alone, and print what it says")
    parser.add_argument("--kills", nargs="*", metavar="WORK", help="kill what writes instead")
    parser.add_argument("--show", action="store_true", help="print all findings, and save nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as where a shell starts it with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stuff = Material.make(Path(folder))
        if asked.only is not None:
            place = Path(folder, "only")
            print(json.dumps(one(asked.only, asked.seed, asked.controls, stuff, place), indent=1))
            os.chdir("/")
            return
        if asked.kills is not None:
            rows = kills(stuff, asked.kills)
            if not asked.kills:
                save("fuzz_kills", rows)
            sys.exit(any(row["problems"] for row in rows))
        found = search(asked.count, asked.seed, asked.controls, stuff)
    bad = [row for row in found if row["problem"]]
    for row in bad[: None if asked.show else 20]:
        print(f"#{row['number']} {row['kind']}: {row['problem']} ({row['words']})\n{row['said']}\n")
    print(table(found))
    seconds = round(time.monotonic() - begin)
    print(f"{seconds} s; slowest {max(row['took'] for row in found):.1f} s")
    if not asked.show:
        kinds = {row["kind"] for row in found}
        rows = [
            {"kind": kind, "inputs": sum(row["kind"] == kind for row in found)}
            | {
                f: sum(row["kind"] == kind and row["problem"] == f for row in found)
                for f in FAILURES
            }
            for kind in ["controls", *KINDS]
            if kind in kinds
        ]
        save("fuzz", {"seed": asked.seed, "seconds": seconds, "kinds": rows})
        head = f"# Damaged and hostile inputs\n\nSeed {asked.seed}, `python benchmarks/fuzz.py`.\n"
        text = f"{head}\n{table(found)}\n{described()}\n"
        (RESULTS / "fuzz.md").write_text(text)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

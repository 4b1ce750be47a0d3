"""What docs/finetuning.md shows works: its Python runs, its commands parse, its table is whole."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from primesvt.cli.app import parse
from primesvt.training.config import FinetuneRecipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "finetuning.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str) -> None:
    launcher, _, words = command.rpartition("primesvt ")
    assert launcher == "" or launcher.split()[0] in ("torchrun", "accelerate")
    assert launcher == "" or launcher.endswith(" -m ")
    assert parse(shlex.split(words, comments=True)).json is False


def test_the_python_example_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = blocks("python")
    exec(compile(source, "finetuning.md", "exec"), {"__name__": "page"})
    assert (tmp_path / "tuned" / "record.json").is_file()


def test_every_field_is_in_the_table_with_its_default() -> None:
    rows = {
        found[1]: [cell.strip() for cell in found[0].strip("|").split("|")]
        for found in re.finditer(r"^\| `(\w+)`.*\|$", PAGE, re.MULTILINE)
    }
    assert rows.keys() == FinetuneRecipe.model_fields.keys()
    defaults = FinetuneRecipe()
    for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing"):
        assert rows[name][1].endswith(f", or {getattr(defaults, name)}")
    for name in ("distillation", "temperature", "feature_weight", "seed", "threads"):
        assert float(rows[name][1]) == getattr(defaults, name)
    assert defaults.gradient_clip == 1 and defaults.warmup_epochs == defaults.epochs / 10


def test_every_flag_of_the_table_is_there() -> None:
    flags = re.findall(r"`--([\w-]+)`", PAGE.split("| field, flag")[1].split("\n\n")[0])
    command = parse(["finetune", "runs/digits"])
    assert len(flags) > 8
    assert all(hasattr(command, flag.replace("-", "_")) for flag in flags)

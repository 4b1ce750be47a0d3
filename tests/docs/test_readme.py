"""What README.md shows works: its Python runs, its commands parse, its example is a real one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from primesvt.cli.app import parse
from primesvt.models import create_model, to_official

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
EXAMPLE = re.compile(r"(<!-- output of make prune -->\n```text\n)(.*?)(```\n)", re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ primesvt ")]


def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "\n".join(blocks("python"))
    assert source
    torch.save({"model": to_official(create_model("spikformer_small"))}, "their_file.pth")
    exec(compile(source, str(README), "exec"), {"__name__": "readme"})


@pytest.mark.quick
@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command):
    words = shlex.split(command, comments=True)[1:]
    assert parse(words).json is False


@pytest.mark.quick
def test_every_make_target_is_there():
    targets = {
        word for block in blocks("console") for word in re.findall(r"^\$ make (\w+)", block, re.M)
    }
    makefile = (ROOT / "Makefile").read_text()
    assert targets == {"prune", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


@pytest.mark.quick
def test_every_linked_file_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_example_output_is_a_real_one(tmp_path):
    """Words are the same on every machine, figures are not; fewer layers and rates give the words.

    Renew with PRIMESVT_UPDATE_GOLDEN=1, which runs all of it.
    """
    update = bool(os.environ.get("PRIMESVT_UPDATE_GOLDEN"))
    fewer = ["--include", "*.conv1", "*.fc1", "--rates", "0.6", "0.98"]
    real = _make_prune(tmp_path, *([] if update else fewer))
    readme = README.read_text()
    if update:
        readme = EXAMPLE.sub(lambda found: found[1] + real + found[3], readme)
        README.write_text(readme)
    shown = EXAMPLE.search(readme)
    assert shown is not None
    assert _without_figures(shown[2]) == _without_figures(real)


def _make_prune(folder: Path, *options: str) -> str:
    """What ``make prune`` prints, run as the Makefile says but in another folder."""
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "prune"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    line = next(line for line in dry if "primesvt prune" in line)
    words = shlex.split(line.partition("primesvt ")[2])
    environment = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "primesvt", *words, *options],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def _without_figures(text: str) -> str:
    """The words alone: prefixes of units depend on the figure."""
    return " ".join(re.sub(r"[-+]?[\d.,]+( [nµmkM](?=J|B|\b))?", "N", text).split())

"""docs/method.md: its commands are understood, alone and under a launcher."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from primesvt.cli.app import parse

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    page = (ROOT / "docs" / "method.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str) -> None:
    launcher, found, words = command.rpartition(" -m primesvt ")
    assert found and launcher.split()[0] in ("torchrun", "accelerate")
    assert parse(shlex.split(words)).json is False


def test_both_launchers_and_several_machines_are_shown() -> None:
    shown = " ".join(commands())
    for word in ("accelerate launch", "--nnodes", "-m primesvt prune", "-m primesvt evaluate"):
        assert word in shown

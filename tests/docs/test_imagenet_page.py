"""docs/reproduce-imagenet.md: its commands parse, as they stand and as they are checked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from primesvt.cli.app import parse
from primesvt.config import PRESETS
from primesvt.models import list_models, model_entry

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reproduce-imagenet.md"


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command):
    words = shlex.split(command)
    start = words.index("primesvt") + 1
    assert words[0] in ("primesvt", "torchrun")
    assert parse(words[start:]).json is False


def test_time_steps_are_given_wherever_the_checkpoint_is():
    given = [command for command in commands() if "checkpoint-199.pth" in command]
    assert len(given) == 6 and all("--time-steps 4" in command for command in given)


def test_psvit_is_asked_for_like_the_paper():
    """The same choices as in the preset, but for the policy and what belongs to prime alone."""
    line = next(command for command in commands() if "--policy psvit" in command)
    method = parse(shlex.split(line)[1:]).recipe.method
    own = {"policy", "policy_options", "order"}
    for name, value in PRESETS["paper"].items():
        assert name in own or getattr(method, name) == value


def test_later_commands_use_what_earlier_ones_leave():
    made: set[str] = set()
    for command in commands():
        words = shlex.split(command)
        used = {word for word in words if word.startswith("runs/")}
        out = {words[words.index("--out") + 1]} if "--out" in words else set()
        assert {run.removesuffix("/finetuned") for run in used - out} <= made, command
        made |= out


def test_the_sizes_of_the_page_are_registered():
    rows = re.findall(r"\| `(sdt_v2_\w+)` \| ([\d, ]+) \|", PAGE.read_text())
    assert len(rows) == 3
    for name, told in rows:
        assert name in list_models() and f"{name}_kd" in list_models()
        assert model_entry(name).config.embed_dims == tuple(map(int, told.split(",")))


def test_every_linked_file_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE.read_text())
    assert links and [link for link in links if not (PAGE.parent / link).exists()] == []

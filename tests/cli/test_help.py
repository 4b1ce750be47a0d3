"""Help teaches: it is kept word by word. Renew with PRIMESVT_UPDATE_GOLDEN=1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from primesvt.cli.app import COMMANDS

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_written(primesvt, command):
    finished = primesvt(*filter(None, [command]), "--help")
    golden = GOLDEN / f"help{'-' * bool(command)}{command}.txt"
    if os.environ.get("PRIMESVT_UPDATE_GOLDEN"):
        golden.write_text(finished.out)
    assert finished.code == 0
    assert finished.out == golden.read_text()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(primesvt, command):
    finished = primesvt(*filter(None, [command]), "--help")
    lines = [line for line in finished.out.splitlines() if not line.startswith("usage:")]
    assert max(map(len, lines)) <= 80


def test_no_words_at_all_is_help(primesvt):
    assert primesvt().out == primesvt("--help").out


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["prun"], "Available subcommands"),
        (["prune", "sdt_v2_digits", "--max-acuracy-drop", "2"], "--max-accuracy-drop"),
        (["prune", "sdt_v2_digits", "--gate", "none"], "'point'"),
        (["prune", "sdt_v2_digits", "--batch-size", "many"], "--batch-size"),
        (["train"], "--recipe"),
        (["apply", "plan.json"], "MODEL"),
    ],
)
def test_mistakes_in_the_flags_exit_with_2(primesvt, words, phrase):
    finished = primesvt(*words)
    assert finished.code == 2
    assert phrase in finished.err


def test_help_does_not_import_torch():
    script = "import sys; from primesvt.cli import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_importing_the_package_imports_nothing_heavy():
    script = (
        "import sys, primesvt; "
        "sys.exit(bool({'torch', 'numpy', 'spikingjelly', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

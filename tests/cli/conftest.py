"""Run the command in this process and look at what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from primesvt.cli import main


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Finished]


@pytest.fixture
def primesvt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``primesvt(*words)`` at 80 columns; the result has ``code``, ``out``, ``err``."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> Finished:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Finished(code=code, out=captured.out, err=captured.err)

    return run

"""What docs/own_model.md shows works: its Python runs, its commands run on what that wrote."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import primesvt
from primesvt.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_model.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_examples_and_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    network, example, task = blocks("python")
    (tmp_path / "mynet.py").write_text(network)
    names: dict[str, object] = {"__name__": "page"}
    try:
        exec(compile(example, "own_model.md", "exec"), names)
        smaller, result, images = names["smaller"], names["result"], names["images"]
        assert result.plan.groups and result.refusals == ()
        kinds = {r["kind"] for r in result.plan.rewrites}
        assert {"attribute", "call"} <= kinds
        assert any("follows a width and keeps its value" in n for n in result.metrics.notes)
        assert result.metrics.after.membrane_bytes_per_sample is not None
        primesvt.models.reset(result.model)
        with torch.no_grad():
            assert torch.equal(smaller(images[:1]), result.model(images[:1]))
        torch.save(names["net"].state_dict(), "mine.pth")
        for line in "".join(blocks("console")).splitlines():
            assert main(shlex.split(line.removeprefix("$ primesvt "))) == 0, line
        assert "; 0 refused" in capsys.readouterr().out
        exec(compile(task, "own_model.md", "exec"), names)
        assert names["found"].metrics.met and names["found"].plan.groups
    finally:
        sys.modules.pop("mynet", None)

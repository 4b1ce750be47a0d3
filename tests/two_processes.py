"""Run a script in two processes, as ``torchrun`` starts them (gloo, no GPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_twice(script: str, folder: Path, *words: str) -> list[Any]:
    """What the script left in ``answer(...)``, by rank.

    The script finds ``words`` in ``sys.argv[2:]``, and may import ``tests``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "script.py"
    file.write_text(HEAD + script)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(file), str(folder), *words],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-20000:]
    return [json.loads((folder / f"answer{rank}.json").read_text()) for rank in range(2)]


HEAD = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
RANK = int(os.environ["RANK"])

def answer(content):
    Path(sys.argv[1], f"answer{RANK}.json").write_text(json.dumps(content))

"""

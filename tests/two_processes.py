"""Run a script in two processes, as ``torchrun`` starts them (gloo, no GPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_twice(script: str, folder: Path, *words: str, torchrun: bool = False) -> list[Any]:
    """What the script left in ``answer(...)``, by rank.

    The script finds ``words`` in ``sys.argv[2:]``, and may import ``tests``. With ``torchrun`` that
    starts the processes; else both are forked where all imports are made, which is quicker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "script.py"
    file.write_text(HEAD + script)
    launch = TORCHRUN if torchrun else ["-c", FORK]
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
FORK = """
import os, runpy, signal, socket, sys, traceback
import accelerate, torch
import primesvt, primesvt.cli, primesvt.report, primesvt.training
torch.set_num_threads(1)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
both = {}
del sys.argv[0]  # that of this launcher
for rank in "01":
    process = os.fork()
    if not process:
        os.environ.update(place, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    both[process] = rank
while both:
    process, status = os.wait()
    del both[process]
    if status:  # as torchrun does, end the other one
        for other in both:
            os.kill(other, signal.SIGTERM)
        sys.exit(1)
"""

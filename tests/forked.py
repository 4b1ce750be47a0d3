"""Processes that are killed for real, without importing everything anew for each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent

# Each line is the words of one process, which is forked here once all imports are made.
LOOP = """
import json, os, sys, traceback
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        try:
            main(*json.loads(line))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(code, flush=True)
"""


class Forked:
    """Calls ``main`` of a script in processes of their own, one after another."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process, self.errors = process, errors

    def __call__(self, *words: object) -> int:
        """The exit code of ``main(*words)``; negative where a signal ended it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        code = self.process.stdout.readline()
        assert code, self.said()
        return int(code)

    def said(self) -> str:
        """What all processes so far have written to stderr."""
        self.errors.seek(0)
        return self.errors.read()


@contextmanager
def forked(script: str) -> Iterator[Forked]:
    """A script with imports and a ``main(*words)``, started once; leave nothing on stdout."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", script + LOOP],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env=environment, text=True,
        ) as process,
    ):  # fmt: skip
        yield Forked(process, errors)
        assert process.stdin is not None
        process.stdin.close()

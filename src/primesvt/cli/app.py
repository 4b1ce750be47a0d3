"""Parse the command line, run one command, turn every user mistake into one clear line."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from pydantic import ValidationError

from primesvt._files import FolderInUse
from primesvt._guard import Fault
from primesvt.cli.apply import Apply
from primesvt.cli.console import Console
from primesvt.cli.evaluate import Evaluate
from primesvt.cli.export import Export
from primesvt.cli.finetune import Finetune
from primesvt.cli.inspect import Inspect
from primesvt.cli.models import Models
from primesvt.cli.prune import LIMITS_NOT_MET, Prune, base_recipe
from primesvt.cli.report import Report
from primesvt.cli.signals import INTERRUPTED, TERMINATED, Terminated, termination
from primesvt.cli.train import Train
from primesvt.config import describe

__all__ = [
    "ERROR",
    "FAULT",
    "INTERRUPTED",
    "IN_USE",
    "LIMITS_NOT_MET",
    "OK",
    "TERMINATED",
    "run",
]

OK, ERROR = 0, 1
FAULT, IN_USE = 70, 75  # EX_SOFTWARE and EX_TEMPFAIL of sysexits.h

DESCRIPTION = """Prune a pre-trained spiking vision transformer within your limits.

a first walk through, on the model and the data of the package:
  primesvt models                            what there is
  primesvt inspect sdt_v2_digits             its layers and channel groups
  primesvt prune sdt_v2_digits --max-accuracy-drop 2
  primesvt evaluate runs/sdt_v2_digits       the smaller model, on the test set
  primesvt finetune runs/sdt_v2_digits       the smaller model, trained on

what a MODEL is:
  a name from `primesvt models`, a checkpoint file (.pth, .safetensors), or a
  folder that `train`, `prune`, `finetune` or `apply` has written

exit codes:
    0  done
    1  a mistake in the input
    2  a mistake in the flags
    3  the limits cannot be met together (the best plan found is saved)
   70  a fault of primesvt itself; a file has the details
   75  another process is writing to the folder
  130  interrupted (SIGINT, Ctrl-C)
  143  terminated (SIGTERM); what was measured is kept, as after Ctrl-C"""


class Command(Protocol):
    """A sub-command: its fields are its flags, its docstring is its help."""

    json: bool

    def run(self, console: Console) -> int:
        """Run the command and return its exit code."""
        ...


COMMANDS: dict[str, type[Any]] = {
    "models": Models,
    "inspect": Inspect,
    "train": Train,
    "evaluate": Evaluate,
    "prune": Prune,
    "finetune": Finetune,
    "apply": Apply,
    "report": Report,
    "export": Export,
}

# What is left of an interrupted command; the others write nothing.
KEPT = {
    "prune": "the same command goes on where it was stopped",
    "finetune": "the same command goes on where it was stopped",
    "train": "the same command goes on where it was stopped",
    "apply": "if the folder of --out is there, delete it: it may not be whole",
}


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    console = Console(as_json="--json" in argv)
    try:
        with termination():
            return parse(argv).run(console)
    except ValidationError as error:
        console.error(describe(error))
    except FolderInUse as error:
        console.error(str(error))
        return IN_USE
    except Fault as error:
        console.error(_fault(error, argv))
        return FAULT
    except (ValueError, OSError) as error:
        console.error(str(error))
    except MemoryError as error:
        console.error(f"out of memory: {error}; try a smaller --batch-size or model")
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        kept = KEPT.get(" ".join(argv[:1]), "nothing was written")
        console.error(f"{'terminated' if ended else 'interrupted'}; {kept}")
        return TERMINATED if ended else INTERRUPTED
    except Exception as error:
        console.error(_fault(error, argv))
        return FAULT
    return ERROR


def _fault(error: Exception, argv: Sequence[str]) -> str:
    """Write the details of an internal error to a file, and return a line that names it."""
    first = next(iter(str(error).splitlines()), "")
    line = f"a fault of primesvt itself, {type(error).__name__}{first and ': '}{first}"
    parts = []
    for name in ("primesvt", "torch", "spikingjelly", "numpy"):
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{name} unknown")
    try:
        details = (
            f"command: {shlex.join(['primesvt', *argv])}\n"
            f"folder: {Path.cwd()}\n"
            f"versions: python {platform.python_version()}, {', '.join(parts)}\n"
            f"system: {platform.platform()}\n\n{''.join(traceback.format_exception(error))}"
        )
        handle, path = tempfile.mkstemp(prefix="primesvt-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(details)
    except OSError as problem:
        return f"{line}; no file could be written about it ({problem.strerror})"
    return f"{line}; please report it with the details in {path}"


def parse(argv: Sequence[str]) -> Command:
    """Parse the command line into a command; mistakes in the flags exit with code 2."""
    union: Any = None
    for name, kind in COMMANDS.items():
        help_text = inspect.cleandoc(kind.__doc__ or "")
        if argv[:1] != [name]:  # all commands are listed: one line each
            help_text = help_text.splitlines()[0]
        settings: dict[str, Any] = {"description": help_text}
        if kind is Prune and (recipe := base_recipe(argv)):
            settings["default"] = Prune(recipe=recipe)
        member = Annotated[kind, tyro.conf.subcommand(name, **settings)]  # type: ignore[valid-type]
        union = member if union is None else union | member
    command: Command = tyro.cli(
        union,
        prog="primesvt",
        description=DESCRIPTION,
        args=list(argv) or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return command

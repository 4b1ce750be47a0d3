"""Parse the command line, run one command, turn every user mistake into one clear line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import tyro
from pydantic import ValidationError

from primesvt.cli.apply import Apply
from primesvt.cli.console import Console
from primesvt.cli.evaluate import Evaluate
from primesvt.cli.export import Export
from primesvt.cli.finetune import Finetune
from primesvt.cli.inspect import Inspect
from primesvt.cli.models import Models
from primesvt.cli.prune import LIMITS_NOT_MET, Prune, base_recipe
from primesvt.cli.report import Report
from primesvt.cli.train import Train
from primesvt.recipe import describe

__all__ = ["ERROR", "INTERRUPTED", "LIMITS_NOT_MET", "OK", "main"]

OK, ERROR, INTERRUPTED = 0, 1, 130

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
  0 done; 1 a mistake in the input; 2 a mistake in the flags; 130 interrupted;
  3 the limits cannot be met together (the best plan found is saved)"""


class Command(Protocol):
    """A sub-command: its fields are its flags, its docstring is its help."""

    json: bool

    def run(self, console: Console) -> int:
        """Do it and return the exit code."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``primesvt`` command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(as_json="--json" in argv)
    try:
        command = parse(argv)
        return command.run(console)
    except ValidationError as error:
        console.error(describe(error))
    except (ValueError, OSError) as error:
        console.error(str(error))
    except KeyboardInterrupt:
        console.error(f"interrupted; {KEPT.get(' '.join(argv[:1]), 'nothing was written')}")
        return INTERRUPTED
    return ERROR


def parse(argv: Sequence[str]) -> Command:
    """The command that was asked for; mistakes in the flags exit with code 2."""
    union: Any = None
    for name, kind in COMMANDS.items():
        settings: dict[str, Any] = {"description": _help(kind, in_full=argv[:1] == [name])}
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


def _help(kind: type[Command], *, in_full: bool) -> str:
    """A command's docstring, or its first line where all commands are listed."""
    text = inspect.cleandoc(kind.__doc__ or "")
    return text if in_full else text.splitlines()[0]

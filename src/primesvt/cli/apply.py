"""``primesvt apply``: cut a model as a plan says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.inspect import tracing
from primesvt.cli.tables import change_table
from primesvt.config import parse_overrides

__all__ = ["Apply"]


@dataclass(frozen=True, kw_only=True)
class Apply:
    """Cut a model as a plan says, and save the smaller model.

    which models fit:
      The plan names channels by their index in the unpruned model, so it fits any
      model of that architecture: the same weights, or the same network trained
      further.

    examples:
      primesvt apply runs/sdt_v2_digits sdt_v2_digits --out smaller
      primesvt apply plan.json 15M.pth --out 15M-pruned
    """

    plan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLAN")]
    """plan.json, or a run folder that holds one."""
    model: flags.Model
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the smaller model."""
    family: flags.Family = None
    override: flags.Override = ()
    container: flags.Container = None
    key_map: flags.KeyMap = None
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Cut, save, and say how much smaller the model is."""
        from primesvt._files import check_place, contents, folder_lock

        if self.out.exists() and (not self.out.is_dir() or contents(self.out)):
            raise ValueError(f"{self.out} holds something else; choose a new or empty folder")
        check_place(self.out)
        with folder_lock(self.out):
            if contents(self.out):
                raise ValueError(f"{self.out} was filled meanwhile; choose a new or empty folder")
            return self._run(console)

    def _run(self, console: Console) -> int:
        """Apply the plan while the folder of the result is locked."""
        from primesvt.channels.plan import Plan, apply_plan
        from primesvt.checkpoint.folder import save_model
        from primesvt.checkpoint.load import open_model
        from primesvt.models.digest import model_digest
        from primesvt.profiling.memory import buffer_bytes, parameter_bytes, parameter_count

        plan = Plan.load(self.plan)
        opened = open_model(
            self.model,
            family=self.family,
            container=self.container,
            key_map=self.key_map,
            overrides=parse_overrides(self.override),
        )
        console.loaded(opened.loaded)
        model = opened.model
        same = model_digest(model) == plan.model_hash

        def sizes() -> dict[str, int]:
            return {
                "parameters": parameter_count(model),
                "parameter_bytes": parameter_bytes(model),
                "buffer_bytes": buffer_bytes(model),
            }

        before = sizes()
        with tracing(console, model):
            apply_plan(model, plan)
        after = sizes()
        save_model(model, self.out, plan=plan)
        figures = {"before": before, "after": after}
        console.result({"out": str(self.out), "same_weights": same, **figures})
        console.say(change_table(figures))
        if plan.recovered:
            console.sentence(
                "The plan was made with recovery, whose weights only its run's model holds:"
                " measure the result, or load the run itself."
            )
        if not same:
            console.line("These are other weights than the plan was made for: measure the result.")
        console.line(f"The model: primesvt.load({str(self.out)!r})")
        return 0

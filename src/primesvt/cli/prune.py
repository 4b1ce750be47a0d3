"""``primesvt prune``: the main job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import change_table
from primesvt.config import PRESETS, PruneRecipe, parse_overrides, read_recipe, unset

if TYPE_CHECKING:
    from primesvt.pruning.result import PruneResult

__all__ = ["LIMITS_NOT_MET", "Prune", "base_recipe"]

LIMITS_NOT_MET = 3


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Prune a model within your limits.

    how it works:
      Measures what every layer's channels are worth, and finds the rates of all
      layers together that save most within the limits; what is left makes up for
      what went, without training (docs/beyond.md). --preset paper is the published
      walk instead, from the largest layer to the smallest (docs/method.md). Stop
      it whenever you like: the same command goes on, and repeats no probe.

    what you get:
      OUT holds the smaller model, the plan, every probe, the figures before and
      after, and report.html. `primesvt.load(OUT)` loads the model.

    several GPUs or machines:
      torchrun --nproc-per-node 4 -m primesvt prune MODEL --device cuda
      The processes measure together; one of them writes (docs/method.md).

    examples:
      primesvt prune sdt_v2_digits --max-accuracy-drop 2
      primesvt prune sdt_v2_digits --max-accuracy-drop 3 --min-memory-saving 0.25
      primesvt prune sdt_v2_digits --exclude '*.attn.*' --gate bound
      primesvt prune sdt_v2_digits --max-accuracy-drop 1 \\
          --from runs/sdt_v2_digits --out runs/stricter     (its probes again)
      primesvt prune 15M.pth --data imagenet --device cuda --batch-size 256
      primesvt prune --recipe runs/sdt_v2_digits/recipe.yaml --seed 1 --out again
    """

    recipe: Annotated[PruneRecipe, tyro.conf.arg(name="")]
    out: flags.Out = None
    """Run folder; runs/MODEL when not given. A run that was stopped there goes on."""
    from_run: Annotated[Path | None, unset("RUN", name="from")] = None
    """Run folder whose probes are used again, under new limits."""
    recipe_file: Annotated[Path | None, unset("FILE", name="recipe")] = None
    """Recipe file (YAML) to start from, such as a run's recipe.yaml; flags override it."""
    preset: Annotated[Literal["paper", "best"] | None, unset("{paper,best}")] = None
    """paper: exactly our reading of the paper (docs/method.md). best: the defaults."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Prune, write the run folder, and say what was traded for what."""
        from primesvt.checkpoint.load import open_model, splits_for
        from primesvt.config import Constraints
        from primesvt.evaluation.batch_dependence import batch_note
        from primesvt.pruning.pipeline import prune

        recipe = self._resolved()
        constraints = Constraints(**recipe.limits.model_dump())
        opened = open_model(
            recipe.model,
            time_steps=recipe.time_steps,
            family=recipe.family,
            overrides=parse_overrides(recipe.override),
        )
        console.loaded(opened.loaded)
        recipe = _with_data(recipe)
        splits = splits_for(
            opened.model,
            recipe.data,
            seed=recipe.run.seed,
            selection_from_train=recipe.run.selection_from_train,
        )
        sets = {"selection": splits.selection, "test": splits.test}
        for note in batch_note(opened.model, recipe.run.batch_size, **sets):
            console.sentence(note)
        out = self.out or Path("runs") / Path(recipe.model.removesuffix(".tar")).stem
        with console.progress() as progress:
            result = prune(
                opened.model,
                data=splits,
                constraints=constraints,
                **recipe.selection.model_dump(),
                **recipe.method.model_dump(),
                **recipe.run.model_dump(exclude={"selection_from_train"}),
                out=out,
                from_run=self.from_run,
                recipe=recipe.to_dict(),
                progress=progress,
            )
        metrics = result.metrics.to_dict()
        facts = {"out": str(out), "data": result.metrics.data, "data_spec": recipe.data}
        console.result({**facts, "metrics": metrics, "plan": result.plan.to_dict()})
        _close(console, result, out)
        return 0 if result.met else LIMITS_NOT_MET

    def _checked_recipe(self) -> PruneRecipe:
        """The recipe, unless it contradicts the preset."""
        recipe = self.recipe
        if not recipe.model:
            raise ValueError("no model given; name one, as in `primesvt prune sdt_v2_digits`")
        for name, value in PRESETS.get(self.preset or "", {}).items():
            asked = getattr(recipe.method, name)
            if asked != value:
                raise ValueError(
                    f"--preset {self.preset} means {name} {value}, not {asked}; "
                    f"leave out --preset or --{name.replace('_', '-')}"
                )
        return recipe

    def _resolved(self) -> PruneRecipe:
        """The recipe with nothing left to the policy's habits."""
        from primesvt.pruning.policies import usual_rates

        recipe = self._checked_recipe()
        if recipe.method.rates is not None:
            return recipe
        method = recipe.method.model_copy(update={"rates": usual_rates(recipe.method.policy)})
        return recipe.model_copy(update={"method": method})


def _with_data(recipe: PruneRecipe) -> PruneRecipe:
    """The recipe with the model's own data where none are named, as recipe.yaml is to have them."""
    from primesvt.checkpoint.load import own_data

    own = own_data(recipe.model)
    if recipe.data is not None or own is None:
        return recipe
    return recipe.model_copy(update={"data": own.found()})


def _close(console: Console, result: PruneResult, out: Path) -> None:
    from primesvt.report.changes import cost_notes

    console.line(result.metrics.data)
    metrics = result.metrics.to_dict()
    console.say(change_table(metrics))
    for note in cost_notes(metrics["after"]):
        console.sentence(note)
    for note in result.metrics.lossless.notes if result.metrics.lossless else ():
        console.sentence(note)
    console.sentence(result.verdict)
    console.line(f"The model:  primesvt.load({str(out)!r})")
    console.line(f"The report: {out / 'report.html'}")


def base_recipe(argv: Sequence[str]) -> PruneRecipe | None:
    """The recipe that the flags of ``prune`` change: of a file, of a preset, or None for neither.

    An unknown preset is left to the parser, which names the known ones.
    """
    if not argv or argv[0] != "prune":
        return None
    path, preset = _value(argv, "--recipe"), _value(argv, "--preset")
    recipe = None if path is None else read_recipe(path)
    if preset is not None and preset in PRESETS:
        # Without a file the model is still to be named, so it has no default here.
        recipe = recipe or PruneRecipe(model="")
        method = recipe.method.model_copy(update=dict(PRESETS[preset]))
        recipe = recipe.model_copy(update={"method": method})
    return recipe


def _value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag, as ``--flag VALUE`` or ``--flag=VALUE``."""
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None

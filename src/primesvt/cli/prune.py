"""``primesvt prune``: prune a model within limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field, create_model

from primesvt._files import check_place
from primesvt.cli import flags
from primesvt.cli.console import Console
from primesvt.cli.tables import change_table
from primesvt.config import (
    PRESETS,
    Method,
    Preset,
    PruneConfig,
    check_preset,
    override_text,
    parse_overrides,
    read_recipe,
    unset,
)
from primesvt.registry import CRITERIA, POLICIES, RECOVERIES

LIMITS_NOT_MET = 3


def _with_choices() -> type[PruneConfig]:
    """The config class whose flags offer the names that the registries know."""
    registries = {"policy": POLICIES, "importance": CRITERIA, "recovery": RECOVERIES}
    known: dict[str, Any] = {
        name: (Literal[registry.names()], Method.model_fields[name])
        for name, registry in registries.items()
    }
    method = create_model("Method", __base__=Method, **known)
    flat: Any = Annotated[method, tyro.conf.arg(name="")]
    model: Any = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    description = PruneConfig.model_fields["model"].description
    return create_model(
        "PruneConfig",
        __base__=PruneConfig,
        model=(model, Field(description=description)),
        method=(flat, method()),
    )


if TYPE_CHECKING:
    from primesvt.checkpoint.load import OpenedModel
    from primesvt.data import Splits
    from primesvt.pruning.result import PruneResult

    Asked = PruneConfig
else:
    Asked = _with_choices()

__all__ = ["LIMITS_NOT_MET", "Prune", "base_recipe"]


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

    recipe: Annotated[Asked, tyro.conf.arg(name="")]
    out: flags.Out = None
    """Run folder; runs/MODEL when not given. A run that was stopped there goes on."""
    from_run: Annotated[Path | None, unset("RUN", name="from")] = None
    """Run folder whose probes are used again, under new limits."""
    recipe_file: Annotated[Path | None, unset("FILE", name="recipe")] = None
    """Recipe file (YAML) to start from, such as a run's recipe.yaml; flags override it."""
    preset: Annotated[Preset | None, unset("{paper,best}")] = None
    """paper: exactly our reading of the paper (docs/method.md). best: the defaults."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, unset("policy.NAME=VALUE")] = ()
    """An option of the policy itself, such as policy.reading=B of prime; may be given often."""
    json: flags.Json = False

    def run(self, console: Console) -> int:
        """Prune, write the run folder, and print the figures before and after."""
        from primesvt.checkpoint.load import open_model, own_data, splits_for
        from primesvt.distributed import resolve_device
        from primesvt.evaluation.batch_dependence import batch_note
        from primesvt.pruning.pipeline import prune

        recipe = self._asked()
        assert recipe.model is not None
        resolve_device(recipe.run.device)
        named = Path(str(recipe.model).removesuffix(".tar")).stem
        out = self.out or Path("runs") / named
        if console.rank == 0:  # of several processes the first one writes
            check_place(out)
        opened = open_model(
            recipe.model,
            time_steps=recipe.time_steps,
            family=recipe.family,
            container=recipe.container,
            key_map=recipe.key_map,
            overrides=parse_overrides(recipe.override),
        )
        own = own_data(recipe.model)
        if recipe.data is None and own is not None:  # recipe.yaml is to name them
            recipe = recipe.model_copy(update={"data": own.found()})
        splits = splits_for(
            opened.model,
            recipe.data,
            seed=recipe.run.seed,
            selection_from_train=recipe.run.selection_from_train,
        )
        opened, recipe = _settled(opened, splits, recipe, console)
        console.loaded(opened.loaded)
        sets = {"selection": splits.selection, "test": splits.test}
        for note in batch_note(opened.model, recipe.run.batch_size, **sets):
            console.sentence(note)
        with console.progress() as progress:
            result = prune(
                opened.model,
                data=splits,
                config=recipe,
                out=out,
                from_run=self.from_run,
                progress=progress,
            )
        metrics = result.metrics.to_dict()
        facts = {"out": str(out), "data": result.metrics.data, "data_spec": recipe.data}
        console.result({**facts, "metrics": metrics, "plan": result.plan.to_dict()})
        _close(console, result, out)
        return 0 if result.met else LIMITS_NOT_MET

    def _asked(self) -> PruneConfig:
        """The recipe with the options of ``--set``, which must name a model and fit the preset."""
        recipe = self.recipe
        if not recipe.model:
            raise ValueError("no model given; name one, as in `primesvt prune sdt_v2_digits`")
        policy = {"flag": "--set", "prefix": "policy.", "example": "policy.reading=B"}
        own = parse_overrides(self.set, **policy)
        base = _base(self.recipe_file, self.preset)
        if base is None or base.method.policy == recipe.method.policy:
            own = recipe.method.policy_options | own  # else the file's are of another policy
        method = Method(**{**recipe.method.model_dump(), "policy_options": own})
        for name in PRESETS.get(self.preset or "", {}):
            flag = "--set" if name == "policy_options" else f"--{name.replace('_', '-')}"
            check_preset(str(self.preset), name, getattr(method, name), flag=flag)
        return PruneConfig(**{**recipe.model_dump(), "method": method})


def _settled(
    opened: OpenedModel, splits: Splits, recipe: PruneConfig, console: Console
) -> tuple[OpenedModel, PruneConfig]:
    """Try guessed settings on data; the recipe then names them, so that they are found again."""
    from primesvt.distributed import ProcessGroup, resolve_device
    from primesvt.evaluation.settings import find_settings

    ProcessGroup.take_gpu()
    processes = ProcessGroup.start(resolve_device(recipe.run.device, opened.model))
    with console.progress() as progress:
        model = find_settings(
            opened.model,
            splits,
            seed=recipe.run.seed,
            batch_size=recipe.run.batch_size,
            device=processes.device,
            processes=processes,
            progress=progress,
        )
    if model.loaded is None or model is opened.model:
        return opened, recipe
    words = [f"{name}={override_text(value)}" for name, value in model.loaded.found.items()]
    recipe = recipe.model_copy(update={"override": (*recipe.override, *words)})
    return dataclasses.replace(opened, model=model), recipe


def _close(console: Console, result: PruneResult, out: Path) -> None:
    """Print what a run reached: before and after, the verdict, and where its files are."""
    from primesvt.report.changes import cost_notes

    console.line(result.metrics.data)
    metrics = result.metrics.to_dict()
    console.say(change_table(metrics))
    for note in cost_notes(metrics["after"]):
        console.sentence(note)
    for note in result.metrics.lossless.notes if result.metrics.lossless else ():
        console.sentence(note)
    for note in result.metrics.notes:
        if note.startswith(("Warning:", "Settings were", "The assumed ")):
            console.sentence(note)
    console.sentence(result.verdict)
    console.line(f"The model:  primesvt.load({str(out)!r})")
    console.line(f"The report: {out / 'report.html'}")


def base_recipe(argv: Sequence[str]) -> PruneConfig | None:
    """The recipe that the flags of ``prune`` change: of a file, of a preset, or None for neither.

    An unknown preset is left to the parser, which names the known ones.
    """
    if not argv or argv[0] != "prune":
        return None
    path, preset = _value(argv, "--recipe"), _value(argv, "--preset")
    base = _base(None if path is None else Path(path), preset)
    return None if base is None else Asked(**{**base.model_dump(), "model": base.model or ""})


def _base(path: Path | None, preset: str | None) -> PruneConfig | None:
    """The recipe of a file and a preset, before flags change it."""
    recipe = None if path is None else read_recipe(path)
    if preset is None or preset not in PRESETS:
        return recipe
    return (recipe or PruneConfig()).with_options(preset=preset)


def _value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag, as ``--flag VALUE`` or ``--flag=VALUE``."""
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None

"""Read the files of a finished run; fields that an older version did not write are absent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

__all__ = ["RunFiles", "flat", "read_run"]

PROBES, TUNED = "sensitivity.jsonl", "finetuned/record.json"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The content of a run folder.

    Attributes:
        path: the folder, as it was named.
        recipe, plan, metrics: what the three files hold.
        probes: the lines of ``sensitivity.jsonl``, in order; empty where the file is not there.
        tuned: the record of the fine-tuning, where there was one.
    """

    path: Path
    recipe: Mapping[str, Any] = field(repr=False)
    plan: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)
    probes: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    tuned: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def images(self) -> bool:
        """Whether the run was judged by accuracy on images, and not by a user's ``score``."""
        return self.metrics["before"].get("selection") is not None

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The cuts of the plan, in order."""
        return list(self.plan["steps"])

    @property
    def model(self) -> str:
        """The name of the pruned model; a module given in Python has none."""
        return str(self.recipe.get("model") or "a model given in Python")

    @property
    def data(self) -> str:
        """The name of the data that accuracy was measured on."""
        return str(self.recipe.get("data") or "data given in Python")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting of the recipe by its name without the section."""
        return {name.rpartition(".")[2]: value for name, value in flat(self.recipe)}

    @property
    def reference(self) -> Mapping[str, Any]:
        """The line of the unpruned network among the probes; empty where there is none."""
        return next((row for row in self.probes if row["kind"] == "reference"), {})

    @cached_property
    def groups(self) -> list[str]:
        """Every channel group that was probed alone or cut, in the order in which they came up."""
        alone = [next(iter(row["cuts"])) for row in self.probes if len(row.get("cuts", ())) == 1]
        return list(dict.fromkeys([*alone, *(step["group"] for step in self.steps)]))


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder.

    Raises ``ValueError`` where it holds no finished run, or a file in it is damaged.
    """
    path = Path(folder)
    recipe = _read(path / "recipe.yaml", yaml.safe_load)
    plan, metrics = (_read(path / name, json.loads) for name in ("plan.json", "metrics.json"))
    for name, content in (("recipe.yaml", recipe), ("plan.json", plan), ("metrics.json", metrics)):
        if not isinstance(content, dict):
            raise ValueError(f"{path / name} is damaged: it holds no fields; make the run again")
    tuned = _read(path / TUNED, json.loads) if (path / TUNED).is_file() else None
    probes = tuple(_lines(path / PROBES)) if (path / PROBES).is_file() else ()
    return RunFiles(
        path=path, recipe=recipe, plan=plan, metrics=metrics, probes=probes, tuned=tuned
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and their values.

    Example:
        >>> list(flat({"model": "m", "limits": {"max_accuracy_drop": 2}}))
        [('model', 'm'), ('limits.max_accuracy_drop', 2)]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{path.parent} holds no finished run: {path.name} is missing; give the folder of a "
            "run that has ended"
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {error}; make the run again") from error


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The probes; a last line that a kill cut short is no probe."""
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["kind"], str):
                raise TypeError("a kind that is no text")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"line {number} of {path} is no probe; delete the line, or the run folder"
            ) from error
        yield row

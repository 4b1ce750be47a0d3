"""The model card of the Hub: what the network is, what was traded for what, how to use it."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from primesvt.exporting.about import prepared
from primesvt.exporting.agreement import Agreement
from primesvt.exporting.source import Origin
from primesvt.models import SpikingViT
from primesvt.models.families import FAMILIES
from primesvt.report import Change, changes, headline
from primesvt.report.costs import cost_notes

__all__ = ["card"]


def card(
    origin: Origin,
    found: Agreement,
    *,
    notes: tuple[str, ...] = (),
    picture: tuple[str, str] | None = None,
    repository: str | None = None,
) -> str:
    """README.md of a model folder: metadata for the Hub, then text in Markdown.

    Args:
        origin: a model of one of the families.
        found: how the folder, loaded back, agrees with it.
        notes: what must be known, one sentence each.
        picture: name of the file, and the text that stands for it.
        repository: where it will be pushed to.
    """
    model, metrics = origin.model, origin.metrics()
    assert isinstance(model, SpikingViT)
    environment = Environment(
        loader=PackageLoader("primesvt"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        title=title_of(origin),
        family=FAMILIES[model.config.family].title,
        headline=headline(metrics) if metrics else "",
        rows=[_cells(row) for row in changes(metrics)] if metrics else [],
        told=cost_notes(metrics["after"]) if metrics else [],
        data=metrics.get("data", ""),
        config=model.config,
        time_steps=model.time_steps,
        prepared=prepared(model),
        found=found,
        notes=notes,
        picture=picture,
        repository=repository,
    )


def title_of(origin: Origin) -> str:
    """The network's name, and that it was pruned, where it is a run's result.

    Example:
        >>> from primesvt.models import create_model
        >>> title_of(Origin(model=create_model("sdt_v2_digits"), source="sdt_v2_digits"))
        'sdt_v2_digits'
    """
    if origin.run is None or origin.recipe is None:
        return origin.name
    given = Path(origin.recipe.model)
    name = given.parent.name if given.name == "model" else given.name
    return f"{name}, pruned"


def _cells(row: Change) -> tuple[str, ...]:
    cells = (row.measure, row.before, row.after, row.change)
    return tuple(cell.strip().replace("|", "\\|") for cell in cells)

"""A folder in the layout of the Hugging Face Hub, and its upload."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from primesvt._files import write_bytes, write_text
from primesvt._format import shown
from primesvt.checkpoint.folder import load, save_model
from primesvt.evaluation.batch_dependence import batch_note, mixing_of
from primesvt.exporting.agreement import Agreement, Comparison
from primesvt.exporting.deploy import spiking_modules
from primesvt.exporting.formats import ExportFormat, ExportJob
from primesvt.exporting.result import ExportResult, Size, prepared
from primesvt.exporting.runtime import model_runner
from primesvt.exporting.source import ExportSource
from primesvt.models import SpikingViT
from primesvt.models.digest import config_of
from primesvt.models.families import FAMILIES
from primesvt.profiling.memory import parameter_bytes
from primesvt.registry import EXPORT_FORMATS
from primesvt.report import changes, headline
from primesvt.report.changes import cost_notes
from primesvt.report.run_files import RunFiles, read_run, told_as_damage
from primesvt.report.tradeoff_plot import Network, networks, text_of

__all__ = ["card", "check_repository", "picture", "upload", "write_hub"]


_TRIED, _WAY, _LIMIT = "#9aa5b1", "#1f6feb", "#c2410c"


def picture(run: RunFiles) -> tuple[bytes, str] | None:
    """Plot accuracy against memory saved, as a PNG and a text that describes it.

    ``None`` where only the unpruned network was measured.
    """
    found = networks(run)
    taken = [each for each in found if each.role in ("before", "step", "plan")]
    if len(found) < 2 or len(taken) < 2:
        return None
    first, last = taken[0], taken[-1]
    text = (
        f"Accuracy against parameter memory saved, for {len(found)} networks: from"
        f" {text_of(first.value, images=run.images)} unpruned to"
        f" {text_of(last.value, images=run.images)} with {last.saving:.1%} saved"
    )
    return _drawn(run, found, taken), text


def _drawn(run: RunFiles, found: list[Network], taken: list[Network]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    unit = 100.0 if run.images else 1.0
    tried = [each for each in found if each.role == "tried"]
    axes.scatter(*_points(tried, unit), s=14, color=_TRIED, label="measured on the way")
    axes.plot(*_points(taken, unit), marker="o", color=_WAY, label="taken")
    asked = run.metrics.get("limits", {}).get("max_accuracy_drop")
    if asked is not None:
        limit = unit * taken[0].value - asked
        axes.axhline(limit, color=_LIMIT, linestyle="--", linewidth=1, label="accuracy limit")
    axes.set_xlabel("parameter memory saved, %")
    axes.set_ylabel("top-1 on the selection set, %" if run.images else "score")
    values = [unit * each.value for each in taken]
    room = max(values) - min(values) or 1.0
    axes.set_ylim(min(values) - 3 * room, max(values) + room)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.figure.legend(frameon=False, loc="outside upper center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _points(networks: list[Network], unit: float) -> tuple[list[float], list[float]]:
    return [100 * each.saving for each in networks], [unit * each.value for each in networks]


def card(
    origin: ExportSource,
    found: Agreement,
    *,
    notes: tuple[str, ...] = (),
    picture: tuple[str, str] | None = None,
    repository: str | None = None,
) -> str:
    """The model card (README.md) of a folder: metadata for the Hub, then text in Markdown.

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
        autoescape=False,  # Markdown, in which ``quoted`` has its own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = quoted
    return environment.get_template("card.md.j2").render(
        title=title_of(origin),
        family=FAMILIES[model.config.family].title,
        headline=headline(metrics) if metrics else "",
        rows=[
            tuple(quoted(cell.strip()) for cell in (row.measure, row.before, row.after, row.change))
            for row in (changes(metrics) if metrics else [])
        ],
        cost_sentences=cost_notes(metrics["after"]) if metrics else [],
        data=metrics.get("data", ""),
        config=model.config,
        time_steps=model.time_steps,
        prepared=prepared(model),
        found=found,
        notes=notes,
        picture=picture,
        repository=repository,
    )


_MARKUP = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "|": "\\|", "`": "\\`", "[": "\\[", "]": "\\]", "\\": "\\\\"}
)


def quoted(text: str) -> str:
    """Text from a run's files within Markdown: one line, without tags, links and code.

    Example:
        >>> quoted("a <b>|\\n[link](x)")
        'a &lt;b&gt;\\\\| \\\\[link\\\\](x)'
    """
    return shown(" ".join(text.split())).translate(_MARKUP)


def title_of(origin: ExportSource) -> str:
    """The title of a model card: the network's name, marked as pruned if it is a run's result.

    Example:
        >>> from primesvt.models import create_model
        >>> title_of(ExportSource(model=create_model("sdt_v2_digits"), source="sdt_v2_digits"))
        'sdt_v2_digits'
    """
    if origin.run is None or origin.recipe is None or origin.recipe.model is None:
        return origin.name
    given = Path(origin.recipe.model)
    name = given.parent.name if given.name == "model" else given.name
    return f"{name}, pruned"


@EXPORT_FORMATS("hub")
class HubFormat(ExportFormat):
    """A folder in the layout of the Hugging Face Hub, with a model card."""

    file_name = "hub"
    is_folder = True
    can_push = True

    def write(self, job: ExportJob) -> ExportResult:
        """Write a folder, load and compare it, and only then give it its name."""
        found, size, notes = write_hub(
            job.origin, job.place, job.staged, job.comparison, repository=job.push
        )
        url = None if job.push is None else upload(job.place, job.push)
        return ExportResult(
            **job.known(), agreement=found, sizes=(*job.before(), size), notes=notes, url=url
        )


FILES = ("config.json", "model.safetensors")
PICTURE = "accuracy.png"


def write_hub(
    origin: ExportSource,
    place: Path,
    staged: Path,
    comparison: Comparison,
    *,
    repository: str | None = None,
) -> tuple[Agreement, Size, tuple[str, ...]]:
    """Write the folder, load it back, compare it with the network, then give it its name.

    Args:
        origin: the network.
        place: the folder; new or empty.
        staged: where it is written first.
        comparison: with the network.
        repository: where it will be pushed to, for the model card.

    Returns:
        How the loaded network agrees, the size of its weights, and what must be known of it.

    Raises:
        ValueError: a module that a folder alone cannot bring back, or one that does not agree.
    """
    if config_of(origin.model) is None:
        raise ValueError(
            "the Hub layout is for models of PrimeSVT's families, which primesvt.load can build;"
            f" {origin.name} is none: export it as onnx or torch-export"
        )
    shutil.rmtree(staged, ignore_errors=True)
    try:
        if origin.folder is None:
            save_model(origin.model, staged)
        else:
            for name in FILES:
                write_bytes(staged / name, (origin.folder / name).read_bytes())
        loaded = load(staged)
        run = model_runner(loaded.float(), alone=bool(mixing_of(loaded)))
        found = comparison(run, run, tuple(spiking_modules(loaded)))
        notes = batch_note(loaded, comparison.samples.batch_size)
        _write_card(origin, staged, found, notes, repository)
        if place.exists():
            place.rmdir()
        staged.replace(place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    weights = place / "model.safetensors"
    size = Size(
        step="model.safetensors", weights=parameter_bytes(loaded), file=weights.stat().st_size
    )
    return found, size, notes


def _write_card(
    origin: ExportSource,
    folder: Path,
    found: Agreement,
    notes: tuple[str, ...],
    repository: str | None,
) -> None:
    with told_as_damage(*filter(None, [origin.run])):
        drawn = None if origin.run is None else picture(read_run(origin.run))
        image = None if drawn is None else (PICTURE, drawn[1])
        text = card(origin, found, notes=notes, picture=image, repository=repository)
    if drawn is not None:
        write_bytes(folder / PICTURE, drawn[0])
    write_text(folder / "README.md", text)


_REPOSITORY = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")  # the Hub's rule


def check_repository(name: str) -> None:
    """Raise ``ValueError`` where a repository cannot be called so, or nothing can push to it."""
    if not (sys.modules.get("huggingface_hub") or importlib.util.find_spec("huggingface_hub")):
        raise ValueError(
            "pushing needs a package that is not installed: pip install huggingface_hub"
        )
    parts = name.split("/")
    if len(parts) > 2 or not all(map(_REPOSITORY.fullmatch, parts)) or ".." in name:
        raise ValueError(
            f"push is {name!r}, which is no repository of the Hugging Face Hub; write NAME/MODEL, "
            "such as me/sdt-v2-digits"
        )


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to the Hub, into a repository that is made where it is missing.

    Returns its address. Raises ``ValueError`` in one line where the package is missing, nobody is
    logged in, or the Hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ValueError(
            "pushing needs a package that is not installed: pip install huggingface_hub"
        ) from error
    api = HfApi()
    try:
        made = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"could not push to {repository}: {first}; the folder {folder} is complete, so it can"
            " be uploaded later"
        ) from error
    return str(made)

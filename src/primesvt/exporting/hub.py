"""A folder in the layout of the Hugging Face Hub, and its upload."""

from __future__ import annotations

import shutil
from pathlib import Path

from primesvt._files import write_bytes, write_text
from primesvt.checkpoint.folder import load, save_model
from primesvt.evaluation.batch_dependence import batch_note, mixing_of
from primesvt.exporting.agreement import Agreement
from primesvt.exporting.card import card
from primesvt.exporting.comparison import Comparison
from primesvt.exporting.deploy import spiking_modules
from primesvt.exporting.picture import picture
from primesvt.exporting.result import Size
from primesvt.exporting.runtime import model_runner
from primesvt.exporting.source import Origin
from primesvt.models.digest import config_of
from primesvt.profiling.memory import parameter_bytes
from primesvt.report.run_files import read_run

__all__ = ["upload", "write_hub"]

FILES = ("config.json", "model.safetensors")
PICTURE = "accuracy.png"


def write_hub(
    origin: Origin,
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
        _write_weights(origin, staged)
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


def _write_weights(origin: Origin, folder: Path) -> None:
    """The two files that ``primesvt.load`` reads: copies where there are some."""
    if origin.folder is None:
        save_model(origin.model, folder)
        return
    for name in FILES:
        write_bytes(folder / name, (origin.folder / name).read_bytes())


def _write_card(
    origin: Origin, folder: Path, found: Agreement, notes: tuple[str, ...], repository: str | None
) -> None:
    shown = None
    if origin.run is not None and (drawn := picture(read_run(origin.run))) is not None:
        content, text = drawn
        write_bytes(folder / PICTURE, content)
        shown = (PICTURE, text)
    text = card(origin, found, notes=notes, picture=shown, repository=repository)
    write_text(folder / "README.md", text)


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

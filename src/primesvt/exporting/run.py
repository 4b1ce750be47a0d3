"""``primesvt.export``: a network as a file for another runtime, compared before it stands there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from primesvt._files import check_place, file_lock
from primesvt._guard import check_counts
from primesvt.evaluation.settings import find_settings, settings_note
from primesvt.exporting.agreement import Comparison, Progress
from primesvt.exporting.formats import ExportFormat, ExportJob, find_format
from primesvt.exporting.hub import check_repository
from primesvt.exporting.result import ExportResult
from primesvt.exporting.source import ExportSource, open_origin, samples_of
from primesvt.models import SpikingViT
from primesvt.registry import EXPORT_FORMATS

__all__ = ["export"]


def export(
    source: str | Path | nn.Module,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    weight_bits: int | None = None,
    agreement: float = 0.99,
    data: Any = None,
    example_input: Tensor | None = None,
    batch_axis: int = 0,
    images: int = 256,
    batch_size: int = 16,
    push: str | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a network for another runtime, and keep the file only if it agrees with the network.

    ``onnx`` (opset 18) and ``torch-export`` (``torch.export.load``) hold one graph of plain
    operators: batch norms folded, neurons written out step by step, any number of samples at once,
    all other sizes and the number of time steps fixed. It reads float32 images ``[B, C, H, W]``,
    or event frames ``[B, T, C, H, W]``, and gives logits ``[B, classes]``. ``hub`` is a folder in
    the layout of the Hugging Face Hub, which ``primesvt.load`` reads.

    Afterwards file and network compute the same samples: predictions, logits, and the spikes of
    every neuron layer are compared.

    Args:
        source: a run folder, a saved model, anything ``primesvt prune`` takes, or a module.
        out: the file, or the folder of the Hub layout; in the folder ``export`` beside the model
            when not given. A module needs it.
        format: ``onnx``, ``torch-export``, ``hub``, or the name of one that was registered.
        weight_bits: 8 keeps weights in eight bits (``onnx`` only). So many of them, from the first
            layer on, stay in float32 that the predictions still agree.
        agreement: share of samples whose prediction must stay the same.
        data: what to compare on, as ``primesvt.prune`` takes it: its selection set; the model's own
            when not given.
        example_input: for a module without ``data``: inputs to compare on.
        batch_axis: of ``example_input``: the axis that counts samples.
        images: compare on so many samples, at most.
        batch_size: of the comparison.
        push: a repository on the Hugging Face Hub to upload the folder to.
        progress: called as ``progress(stage, done, total)``; a total of 0 is not known.

    Raises:
        ValueError: nothing that can be exported, a package that is missing, or a file that does
            not agree, which is deleted.
        FolderInUse: another process is writing to ``out``; a ``ValueError`` too.

    Example:
        >>> import tempfile, torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> shown = torch.rand(4, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export(net, f"{folder}/net.pt2", format="torch-export", example_input=shown)
        >>> made.agreement.predictions, made.input
        (1.0, 'float32 [batch, 1, 8, 8]')
    """
    made = find_format(format)
    _check(format, made, weight_bits=weight_bits, push=push)
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement is {agreement!r}, but is a share of predictions: 0 to 1")
    check_counts(batch_size=batch_size)
    if not isinstance(images, int) or images < 1:
        raise ValueError(f"images is {images!r}, but must be at least 1")
    made.check()
    if push is not None:
        check_repository(push)
    if out is not None:
        check_place(out)
    origin = _settled(open_origin(source), data)
    place = _place(origin, made, out, weight_bits)
    check_place(place)
    samples = samples_of(
        origin,
        data=data,
        example_input=example_input,
        count=images,
        batch_size=batch_size,
        axis=batch_axis,
    )
    comparison = Comparison(model=origin.model, samples=samples, level=agreement, progress=progress)
    job = ExportJob(
        origin=origin,
        place=place,
        format=format,
        comparison=comparison,
        weight_bits=weight_bits,
        push=push,
    )
    if progress is not None:
        progress("exporting", 0, 0)
    with file_lock(place):
        _place(origin, made, out, weight_bits)  # what lies there now
        found = made.write(job)
    return replace(found, notes=(*settings_note(origin.model), *found.notes))


def _settled(origin: ExportSource, data: Any) -> ExportSource:
    """The network with guessed settings tried on its data, where it has such."""
    if not isinstance(origin.model, SpikingViT) or (data is None and origin.own is None):
        return origin
    given = data
    if given is None and origin.own is not None:
        given = origin.own.found()
    return replace(origin, model=find_settings(origin.model, given))


def _check(name: str, format: ExportFormat, *, weight_bits: int | None, push: str | None) -> None:
    """Refuse what the format cannot do."""
    if weight_bits is not None and weight_bits not in format.weight_bits:
        able = [each for each in EXPORT_FORMATS if weight_bits in find_format(each).weight_bits]
        if not able:
            raise ValueError(f"weight_bits is {weight_bits!r}; 8 is what can be had")
        raise ValueError(
            f"{weight_bits}-bit weights are not written as {name}; use the format"
            f" {' or '.join(able)}, or leave weight_bits out"
        )
    if push is not None and not format.can_push:
        able = [each for each in EXPORT_FORMATS if find_format(each).can_push]
        raise ValueError(
            f"only the format {' or '.join(able)} can be pushed, not {name}; leave push out, or ask"
            " for it"
        )


def _place(
    origin: ExportSource, format: ExportFormat, out: str | Path | None, weight_bits: int | None
) -> Path:
    """The path of the result, checked before anything is computed."""
    usual = Path(format.file_name)
    if weight_bits is not None:
        usual = usual.with_stem(f"{usual.stem}-{weight_bits}bit")
    if out is None:
        if isinstance(origin.source, nn.Module):
            raise ValueError("give out=, the name of the file to write")
        out = origin.home / "export" / usual
    place = Path(out)
    if format.is_folder:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ValueError(f"{place} holds something else; choose a new or empty folder")
    elif place.is_dir():
        raise ValueError(f"{place} is a folder; name a file in it, such as {usual}")
    return place

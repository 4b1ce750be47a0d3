"""Pruned networks as files: how well they agree, how large they are, with 8-bit weights too.

    python benchmarks/export.py [CIFAR-FOLDER] [WORK]     # results/export.json and .md

CIFAR-FOLDER: CIFAR-10 as ``primesvt prune`` takes it; without it the digits alone. Runs and files
lie in WORK (a temporary folder when not given), and go on where they were stopped. One thread; some
minutes beside the search.

256 selection images are compared, and decide how many weights stay in float32; the test set, whole,
decides nothing. Milliseconds: medians in onnxruntime, all files of a network in turn, by the
processor time of one thread. The last row of each network is what onnxruntime's own quantization
makes of it (``quantize_dynamic``: int8 weights, and activations rounded anew for every input).
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import CIFAR
from machine import RESULTS, described, save
from onnxruntime.quantization import QuantType, quantize_dynamic
from quoting import quote
from torch import Tensor
from torch.utils.data import DataLoader

from primesvt import ExportResult, export
from primesvt._format import megabytes
from primesvt.checkpoint.load import open_model
from primesvt.cli import main as primesvt
from primesvt.data import load_data
from primesvt.exporting.runtime import Runner, model_runner, onnx_runner, program_runner
from primesvt.profiling.timing import Pace, race

LEVELS = (0.99, 0.95, 0.0)  # agreement that 8-bit weights must keep; 0 rounds all of them
BATCH = 250
TIMED = 32  # images


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its data, and where its run and its files lie."""

    source: str
    data: str
    flags: tuple[str, ...]
    run: Path

    @property
    def name(self) -> str:
        return self.run.name

    @cached_property
    def test_set(self) -> tuple[Tensor, Tensor]:
        """Every test image, and its label."""
        opened = open_model(self.source)
        splits = load_data(self.data, data_config=opened.data, held_out=opened.held_out)
        images, labels = zip(*DataLoader(splits.test, batch_size=500), strict=True)  # type: ignore[arg-type]
        return torch.cat(images), torch.cat(labels)

    def answers(self, run: Runner) -> Tensor:
        """Predictions on the test set."""
        return torch.cat([run(part)[0].argmax(1) for part in self.test_set[0].split(BATCH)])


def pruned(case: Case) -> None:
    words = ["prune", case.source, "--data", case.data, *case.flags, "--out", str(case.run)]
    code = primesvt(words)
    if code not in (0, 3):
        raise SystemExit(f"{case.name} could not be pruned")


def rows(case: Case) -> Iterator[dict[str, Any]]:
    """The unpruned network as a file, then the pruned one in every format."""
    files = case.run.with_name(f"{case.name}-files")
    original = export(case.source, files / "original.onnx", data=case.data)
    yield row(case, "original", case.source, original)
    made = export(case.run, files / "pruned.onnx")
    yield row(case, "pruned", case.run, made)
    program = export(case.run, files / "pruned.pt2", format="torch-export")
    yield row(case, "pruned", case.run, program)
    for level in LEVELS:
        place = files / f"pruned-8bit-{level:g}.onnx"
        small = export(case.run, place, weight_bits=8, agreement=level)
        yield row(case, f"pruned, 8-bit weights, {level:.0%} asked", case.run, small)
    logging.getLogger().setLevel(logging.ERROR)  # it advises to optimise the graph first
    place = files / "dynamic.onnx"
    quantize_dynamic(made.path, place, weight_type=QuantType.QInt8, per_channel=True)
    yield {
        "network": case.name,
        "step": "pruned, quantize_dynamic",
        "format": "onnx",
        "file": place.stat().st_size,
        "path": place,
        **tested(case, case.run, onnx_runner(place.read_bytes())),
    }


def row(case: Case, step: str, network: str | Path, made: ExportResult) -> dict[str, Any]:
    make = onnx_runner if made.format == "onnx" else program_runner
    found = {"network": case.name, "step": step, "format": made.format}
    found |= {"weights": made.sizes[-1].weights, "file": made.sizes[-1].file}
    found |= {"rounded": made.to_dict()["rounded"], "path": made.path, **agreement(made)}
    return found | tested(case, network, make(made.path.read_bytes()))


def agreement(made: ExportResult) -> dict[str, Any]:
    kept = ("samples", "predictions", "mean_difference", "largest_difference", "equal_spikes")
    found = made.agreement.to_dict()
    return {name: found[name] for name in kept} | {"least_spikes": made.agreement.least}


def tested(case: Case, network: str | Path, file: Runner) -> dict[str, Any]:
    """On the test set: the share of right predictions, and of those that stay the same."""
    labels = case.test_set[1]
    before, after = case.answers(model_runner(open_model(network).model)), case.answers(file)
    return {
        "test_images": len(labels),
        "test_network": float((before == labels).double().mean()),
        "test_file": float((after == labels).double().mean()),
        "test_same": float((before == after).double().mean()),
    }


def timed(case: Case, found: list[dict[str, Any]]) -> None:
    """Add milliseconds of every ONNX file, all in turn, by the processor time of one thread."""
    images = case.test_set[0][:TIMED]
    paths = {number: each.pop("path") for number, each in enumerate(found)}
    runs = {
        str(number): partial(onnx_runner(paths[number].read_bytes()), images)
        for number, each in enumerate(found)
        if each["format"] == "onnx"
    }
    pace = Pace(seconds=20, least=20, most=150, clock=time.thread_time)
    for number, seconds in race(runs, pace, torch.device("cpu")).items():
        found[int(number)]["milliseconds"] = 1e3 * float(np.median(seconds))


def short(found: list[dict[str, Any]]) -> str:
    """What docs/export.md shows: sizes at each step, and whether predictions stay."""
    lines = [
        f"| network | step | weights | file | ms, batch {TIMED} | same prediction, test set"
        " | top-1 of the file |",
        "|---|---|---|---|---|---|---|",
    ]
    steps = ("original", "pruned", f"pruned, 8-bit weights, {LEVELS[0]:.0%} asked")
    for each in found:
        if each["step"] in steps and each["format"] == "onnx":
            lines.append(
                f"| {each['network']} | {each['step']} | {megabytes(each['weights'])}"
                f" | {megabytes(each['file'])} | {each['milliseconds']:.2f}"
                f" | {each['test_same']:.2%} of {each['test_images']:,}"
                f" | {each['test_file']:.2%} |"
            )
    return "\n".join(lines)


def page(found: list[dict[str, Any]]) -> str:
    lines = [
        "# Pruned networks as files\n",
        "Made by `python benchmarks/export.py CIFAR-FOLDER`, which says what is compared.\n",
        short(found),
        "",
        "All formats:\n",
        f"| network | step | format | weights | file | ms, batch {TIMED} | 8-bit layers"
        " | same prediction (256) | same spikes | logits differ by | top-1 of the network, test"
        " | of the file | same prediction, test |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        rounded = each.get("rounded")
        share = each.get("equal_spikes")
        cells = [
            each["network"],
            each["step"],
            each["format"],
            megabytes(each["weights"]) if "weights" in each else "",
            megabytes(each["file"]),
            f"{each['milliseconds']:.2f}" if "milliseconds" in each else "",
            f"{rounded['layers']} of {rounded['total']}" if rounded else "",
            f"{each['predictions']:.2%}" if "predictions" in each else "",
            "" if share is None else "all" if share == 1 else f"{share:.4%}",
            f"{each['mean_difference']:.2g}" if "mean_difference" in each else "",
            f"{each['test_network']:.2%}",
            f"{each['test_file']:.2%}",
            f"{each['test_same']:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Seed 0 of every draw. {described()}.", ""])


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    work = Path(arguments[1] if len(arguments) > 1 else tempfile.mkdtemp())
    digits = ("--batch-size", "450", "--max-accuracy-drop", "2", "--gate", "bound")
    cases = [Case(source="sdt_v2_digits", data="digits", flags=digits, run=work / "digits")]
    if arguments:
        source = str(CIFAR / "model")
        run = work / "cifar10_seed0"
        cases.append(Case(source=source, data=arguments[0], flags=("--batch-size", "256"), run=run))
    found = []
    for case in cases:
        pruned(case)
        own = []
        for each in rows(case):
            own.append(each)
            print(each, flush=True)
        timed(case, own)
        found += own
    save("export", found)
    (RESULTS / "export.md").write_text(page(found))
    quote("docs/export.md", "export.md", short(found))
    print(page(found))


if __name__ == "__main__":
    main(sys.argv[1:])

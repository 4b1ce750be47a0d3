"""Uniform structured pruning of every family: PrimeSVT beside Torch-Pruning 1.6.1.

    pip install -e '.[compare]'
    python benchmarks/against_torch_pruning.py   # results/torch_pruning.json and .md
    python benchmarks/against_torch_pruning.py --torchvision [NAME ...] [--minutes 10]

The second compares both on torchvision's classifiers instead (see vision_classifiers.py); without
names, those that have no row in results/against_torch_pruning_vision.json yet.

Both tools get the same untrained networks in evaluation mode, the same images, the same rates and
the L2 norm; the classifier stays whole. Four rows a network and rate:

- PrimeSVT: every channel group that is pruned by default, which leaves the residual streams whole.
- PrimeSVT, streams too: the residual streams at the same rate, which is what Torch-Pruning does.
- Torch-Pruning: as its README has it.
- Torch-Pruning, heads told: it is also given the layers of q, k and v and their head counts.

With more than one time step Torch-Pruning takes the axis of time for channels. A network that it
pruned at one time step can be run with more.

What is measured:

- forward works: the model runs on the images after the cut.
- removal exact: in float64 the output equals that of the original in which every reader ignores the
  removed channels (see exactness.py); what Torch-Pruning removed is read off its batch norms.
- attention inner widths: how much narrower q, k and v became (SpikingResformer: what it has in
  their place) in all attentions together.
- seconds: analysis, ranking and cut, without the imports; for PrimeSVT also of the check that
  ``prune`` makes before it touches a model.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vision_classifiers
from exactness import FAMILIES, Cuts, Subject, copied, cuts_of, equals_removal, subject
from machine import RESULTS, described, save
from torch import nn

from primesvt.channels import remove_channels, trace, verify
from primesvt.importance import CriterionContext, keep
from primesvt.importance.magnitude import l2

RATES = (0.25, 0.5)
TIME_STEPS = (1, 2)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tool on one network at one rate; ``None`` where the forward does not work."""

    model: str
    time_steps: int
    tool: str
    rate: float
    forward: str
    exact: str
    attention: float | None
    saved: float | None
    seconds: float
    seconds_of_check: float | None
    firing: tuple[float, float]


def with_primesvt(case: Subject, rate: float, *, streams: bool) -> Row:
    """Cut every group to the same share, smallest L2 norm first."""
    small = copied(case.model)
    start = time.perf_counter()
    graph = trace(small, case.images[:1])
    evidence = CriterionContext(model=small, graph=graph)
    cuts: Cuts = {}
    for group in graph:
        if group.prunable or (streams and group.status == "free" and group.kind == "stream"):
            width = max(1, math.floor(group.size * (1 - rate) + 0.5))
            cuts[group.name] = np.atleast_2d(keep(l2(evidence, group), width))
    remove_channels(small, graph, cuts)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    refused = verify(case.model, graph)
    check = time.perf_counter() - start
    tool = "PrimeSVT, streams too" if streams else "PrimeSVT"
    made = row(case, tool, rate, small, lambda: cuts, seconds, check)
    assert not refused, refused
    return made


def with_torch_pruning(case: Subject, rate: float, *, heads: bool) -> Row:
    """The same with Torch-Pruning's own pruner."""
    import torch_pruning as tp

    small = copied(case.model)
    told = {}
    for path, layer in last_layers(small) if heads else ():
        count = getattr(small.get_submodule(path.rpartition(".")[0]), "heads", None)
        if count:
            told[layer] = count
    tool = "Torch-Pruning, heads told" if heads else "Torch-Pruning"
    start = time.perf_counter()
    try:
        tp.pruner.BasePruner(
            small,
            case.images[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=rate,
            ignored_layers=[small.head],
            num_heads=told,
            prune_head_dims=True,
            # Its own default dictionaries are shared by all pruners of a process.
            in_channel_groups={},
            out_channel_groups={},
        ).step()
    except Exception as error:  # whatever it raises is the finding
        seconds = time.perf_counter() - start
        return row(case, tool, rate, None, dict, seconds, None, failed=f"step: {one_line(error)}")
    seconds = time.perf_counter() - start
    return row(case, tool, rate, small, lambda: cuts_of(case, small), seconds, None)


def row(
    case: Subject,
    tool: str,
    rate: float,
    small: nn.Module | None,
    cuts: Callable[[], Cuts],
    seconds: float,
    check: float | None,
    failed: str = "",
) -> Row:
    """Run the smaller model and compare it with the silenced original."""
    exact, attention, saved = "-", None, None
    if small is not None:
        try:
            with torch.no_grad():
                small(case.images)
                logits = copied(small).double()(case.images.double())
        except Exception as error:  # whatever a cut breaks is the finding
            failed = one_line(error)
        else:
            exact = equals_removal(case, logits, cuts)
            before = attention_width(case.model)
            attention = 1 - attention_width(small) / before
            saved = 1 - parameters(small) / parameters(case.model)
    return Row(
        model=case.name,
        time_steps=case.time_steps,
        tool=tool,
        rate=rate,
        forward=f"no ({failed})" if failed else "yes",
        exact=exact,
        attention=attention,
        saved=saved,
        seconds=round(seconds, 2),
        seconds_of_check=check and round(check, 2),
        firing=case.firing,
    )


def one_line(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:70]}{'...' * (len(line) > 70)}"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def attention_width(model: nn.Module) -> int:
    """Channels inside all attentions: of q, k and v, or of SpikingResformer's y1 and y2."""
    return sum(layer.weight.shape[0] for _, layer in last_layers(model))


def last_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Per module named q, k, v or w: the layer that writes its output."""
    for path, module in model.named_modules():
        if path.split(".")[-1] in ("q", "k", "v", "w"):
            yield path, [m for m in module.modules() if isinstance(m, LAYERS)][-1]


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with the machine in front."""
    low, high = min(r.firing[0] for r in rows), max(r.firing[1] for r in rows)
    lines = [
        "# Torch-Pruning 1.6.1 beside PrimeSVT",
        "",
        "Made by `python benchmarks/against_torch_pruning.py`, where the rows and columns are"
        f" explained. Untrained networks whose neurons fire at {low:.0%} to {high:.0%}, uniform"
        " rates, L2 norm. Seconds in brackets are those of the check before a cut.",
        "",
        f"{described()}.",
        "",
        *summary(rows),
        "",
        "| model | T | rate | tool | forward works | removal exact | attention narrower"
        " | parameters saved | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        narrower, saved = (f"{v:.0%}" if v is not None else "-" for v in (r.attention, r.saved))
        check = f" ({r.seconds_of_check:.2f})" if r.seconds_of_check is not None else ""
        lines.append(
            f"| {r.model} | {r.time_steps} | {r.rate:.0%} | {r.tool} | {r.forward} | {r.exact}"
            f" | {narrower} | {saved} | {r.seconds:.2f}{check} |"
        )
    return "\n".join([*lines, ""])


def summary(rows: list[Row]) -> Iterator[str]:
    """How often each tool's forward works and its removal is exact."""
    yield "| tool | T | forward works | removal exact | attention narrower | seconds, mean |"
    yield "|---|---|---|---|---|---|"
    for time_steps in TIME_STEPS:
        for tool in dict.fromkeys(r.tool for r in rows):
            own = [r for r in rows if r.tool == tool and r.time_steps == time_steps]
            works, exact, narrower = (
                sum(bool(value) for value in column)
                for column in zip(
                    *((r.forward == "yes", r.exact == "yes", r.attention) for r in own), strict=True
                )
            )
            mean = sum(r.seconds for r in own) / len(own)
            yield (
                f"| {tool} | {time_steps} | {works} of {len(own)} | {exact} of {len(own)}"
                f" | {narrower} of {len(own)} | {mean:.2f} |"
            )


TOOLS: Mapping[str, Callable[[Subject, float], Row]] = {
    "PrimeSVT": lambda case, rate: with_primesvt(case, rate, streams=False),
    "PrimeSVT, streams too": lambda case, rate: with_primesvt(case, rate, streams=True),
    "Torch-Pruning": lambda case, rate: with_torch_pruning(case, rate, heads=False),
    "Torch-Pruning, heads told": lambda case, rate: with_torch_pruning(case, rate, heads=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--torchvision", nargs="*", metavar="NAME", help="its classifiers instead")
    parser.add_argument("--minutes", type=float, default=10, help="for one classifier")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        vision_classifiers.measured(*args.worker[:2], Path(args.worker[2]))
    elif args.torchvision is not None:
        vision_classifiers.compare(__file__, args.torchvision, args.minutes)
    else:
        families()


def families() -> None:
    """The project's own families, all rates and tools."""
    warnings.simplefilter("ignore")  # Torch-Pruning warns of every tensor it cannot follow
    torch.set_num_threads(1)
    for tool in TOOLS.values():  # imports and first calls are not timed
        tool(subject("spikformer", 1), 0.5)
    rows: list[Row] = []
    for family in FAMILIES:
        for time_steps in TIME_STEPS:
            case = subject(family, time_steps)
            for rate in RATES:
                for tool in TOOLS.values():
                    rows.append(tool(case, rate))
                    print(rows[-1], flush=True)
    (RESULTS / "torch_pruning.md").write_text(table(rows))
    print("written to", save("torch_pruning", [asdict(r) for r in rows]).name)


if __name__ == "__main__":
    main()

"""The page and the picture made of the evidence table; nothing on them is typed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from machine import RESULTS
from quoting import quote

from evidence.aims import aims
from evidence.brief import brief
from evidence.rows import CONTROLS, PAPER, POLICIES, PUBLISHED, UNPRUNED, goals

__all__ = ["write_page"]

DOCS = Path(__file__).parent.parent.parent / "docs"
Record = Mapping[str, Any]

INTRODUCTION = """# Results

Made by `python benchmarks/evidence/run.py CIFAR-FOLDER` from the networks in `checkpoints/`, whose
`record.json` says how each was trained. Nothing on this page is typed by hand. The networks are
small and were trained on two processor cores, far from what their families reach: what counts is
how much of their accuracy is left.

All policies cut the same groups of the same networks, with the same images, limits and recovery
(docs/method.md, "Policies to compare with"). *none*: L2 norm, nothing recovered. *refit*: what this
package does without training. Accuracy limits are held by the bound gate and confirmed on images
that chose nothing; where a saving is asked for, the policy stops there, whatever the accuracy.
`prime` and `psvit` take their rates from the accuracy limit, so there they have the paper's, 3
points, and what they reach within it. *prime, as published* is the paper's method: point gate, no
confirmation, nothing recovered.
*Saved*: parameter memory, of the network given. *Lost*: points of top-1 on the test set, which
decided nothing, against the unpruned network; below zero is a gain. *Tuned*: after fine-tuning with
distillation for a tenth of the training epochs. Intervals: 95 %, Wilson. *Seconds*: of the search,
with other work on the same cores; a star where it used the probes of a run with another limit.
"""


def write_page(rows: Sequence[Record], machine: Record) -> None:
    """Write docs/results.md, docs/results.png, and what the README shows."""
    parts = [INTRODUCTION, _took(rows)]
    if _drawn(rows):
        parts.append(
            f"![accuracy on the test set against memory saved]({_picture(rows).name})\n\n"
            "Accuracy as a share of the unpruned network's, each policy with refit, before"
            " fine-tuning, and the paper's method without any recovery. The cross: PrimeSVT as"
            " published on ImageNet-1K, a ratio of another"
            " network on other images, to compare shapes by and not numbers.\n"
        )
    parts += [aims(rows), _seeds(rows)]
    parts += [_network(name, own) for name, own in sorted(_by_model(rows).items())]
    parts.append(", ".join(f"{key} {value}" for key, value in machine.items()) + ".\n")
    (DOCS / "results.md").write_text("\n".join(part for part in parts if part))
    table = brief(rows)
    if table:
        head = "# Policies within 3 points\n\nPart of the evidence table, see docs/results.md.\n"
        (RESULTS / "evidence.md").write_text(f"{head}\n{table}\n")
        quote("README.md", "evidence.md", table)


def _took(rows: Sequence[Record]) -> str:
    """The time of everything on the page."""
    tuned = [row["tuned"]["seconds"] for row in rows if "tuned" in row]
    made = [row["seconds"] for row in rows if row["policy"] != UNPRUNED]  # that is tuning alone
    hours = (sum(made) + sum(tuned)) / 3600
    return (
        f"{len(rows)} rows, {len(tuned)} of them fine-tuned, in {hours:.1f} hours of one thread:"
        f" {sum(made) / 3600:.1f} of searches and controls, {sum(tuned) / 3600:.1f} of fine-tuning."
        f" They were made by two processes side by side: {hours / 2:.1f} hours for each.\n"
    )


def _by_model(rows: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def _family(model: str) -> str:
    """A network's name without its seed."""
    return model.rpartition("_seed")[0] or model


def _drop(row: Record, tuned: bool = False) -> float:
    """Points lost on the test set."""
    after = row["tuned"]["test"] if tuned else row["after"]["test"]
    return 100 * float(row["before"]["test"]["accuracy"] - after["accuracy"])


def _seeds(rows: Sequence[Record]) -> str:
    """Means over training seeds, where there are several."""
    lines = [
        "## Over training seeds\n",
        "Mean and standard deviation over networks that differ in their training seed alone.\n",
        "| network | goal | policy | recovery | seeds | saved | lost | lost, tuned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, ...], list[Record]] = {}
    for row in sorted(rows, key=_place):
        key = (_family(row["model"]), row["goal"], row["policy"], row["recovery"])
        found.setdefault(key, []).append(row)
    body = [
        f"| {' | '.join(key)} | {len(own)} | {_spread([100 * row['saving'] for row in own])} %"
        f" | {_spread([_drop(row) for row in own])} | {_tuned_spread(own)} |"
        for key, own in sorted(found.items(), key=lambda pair: pair[0][0])
        if len(own) > 1
    ]
    return "\n".join([*lines, *body, ""]) if body else ""


def _place(row: Record) -> tuple[int, ...]:
    """Goals and policies in their order; controls last."""
    told = [goal.name for goal in goals()]
    policies = [*POLICIES, PAPER, *CONTROLS]
    goal = told.index(row["goal"]) if row["goal"] in told else -1
    return (row["policy"] in CONTROLS, goal, policies.index(row["policy"]))


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def _tuned_spread(rows: Sequence[Record]) -> str:
    values = [_drop(row, tuned=True) for row in rows if "tuned" in row]
    return _spread(values) if len(values) > 1 else ""


def _network(name: str, rows: Sequence[Record]) -> str:
    before = rows[0]["before"]
    test = before["test"]
    lines = [
        f"## {name}\n",
        f"{before['parameters']:,} parameters, {test['accuracy']:.2%} of {test['images']:,} test"
        f" images ({test['low']:.1%} .. {test['high']:.1%}).\n",
        "| goal | policy | recovery | saved | test | lost | tuned | lost, tuned | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sparse = [row for row in rows if "csr_bytes" in row]
    told = [_sparse(row) for row in sparse]
    return "\n".join([*lines, *map(_line, sorted(rows, key=_place)), *told, ""])


def _line(row: Record) -> str:
    tuned = row.get("tuned")
    after = _accuracy(tuned["test"]) if tuned else ""
    lost = f"{_drop(row, tuned=True):.2f}" if tuned else ""
    took = "" if row["policy"] in CONTROLS else f"{row['seconds']:.0f}{'*' * row['reused']}"
    return (
        f"| {row['goal']} | {row['policy']} | {row['recovery']} | {row['saving']:.2%}"
        f" | {_accuracy(row['after']['test'])} | {_drop(row):.2f} | {after} | {lost} | {took} |"
    )


def _sparse(row: Record) -> str:
    """What zeros alone save."""
    return (
        f"\nUnstructured: {row['sparsity']:.2%} of the parameters are zero, and the network takes"
        f" {row['dense_bytes']:,} bytes as before and {row['time_ratio']:.2f} times its time; as"
        f" compressed sparse rows its parameters would take {row['csr_bytes']:,} bytes."
    )


def _accuracy(test: Record) -> str:
    return f"{test['accuracy']:.2%} ({test['low']:.1%} .. {test['high']:.1%})"


def _drawn(rows: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
    """Per policy: memory saved, and the share of the accuracy that is left, of one network."""
    whole = [row for row in rows if "cifar" in row["model"] and _shown(row)]
    name = min((row["model"] for row in whole if "sdt" in row["model"]), default="")
    found = {
        policy: sorted(
            (100 * row["saving"], 100 * row["after"]["test"]["accuracy"] / _before(row))
            for row in whole
            if row["model"] == name and row["policy"] == policy
        )
        for policy in (*POLICIES, PAPER)
    }
    return {policy: points for policy, points in found.items() if points}


def _shown(row: Record) -> bool:
    return row["recovery"] == "refit" or row["policy"] == PAPER


def _before(row: Record) -> float:
    return float(row["before"]["test"]["accuracy"])


def _picture(rows: Sequence[Record]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (policy, points), marker in zip(_drawn(rows).items(), _markers(), strict=False):
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=policy)
    axes.plot(100 * PUBLISHED, 100 * 70.3 / 73.3, "kx", label="PrimeSVT, published (ImageNet-1K)")
    axes.set(xlabel="memory saved (%)", ylabel="accuracy left (% of the unpruned network's)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = DOCS / "results.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _markers() -> Iterator[str]:
    yield from "osD^vPX"

"""What every group costs alone, and what the re-estimation of batch norms costs by itself.

    python benchmarks/curves.py [CIFAR-FOLDER]      # results/curves.json and .md

Distance (nats per image, 512 selection images) of networks with one group cut, obs and refit, with
batch norms that follow the cut, as built, and with statistics replaced by those of the calibration
images. The first row cuts nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from checkpoints import CIFAR, Case
from machine import RESULTS, described, save
from presets import in_memory
from torch import nn
from variants import replaced, usual

from primesvt.calibration import calibration_of
from primesvt.channels.widths import Widths, kept_count
from primesvt.evaluation.divergence import OutputDivergence
from primesvt.models.shared_prefix import VariantBatch

RATES = (0.3, 0.9)


def rows_of(case: Case) -> list[dict[str, Any]]:
    inputs = calibration_of(in_memory(case.splits.selection, 512), batch_size=case.batch_size)
    distance = OutputDivergence(case.model, inputs)
    prober = case.prober("obs", "refit")

    def both(cuts: Widths) -> dict[str, float]:
        networks: dict[str, nn.Module] = {
            "followed": usual(case, cuts),
            "replaced": replaced(case, cuts),
        }
        values = distance(VariantBatch(networks=list(networks.values())))
        return dict(zip(networks, values, strict=True))

    rows = [{"model": case.name, "group": "nothing", "rate": 0.0, "saved": 0.0, **both({})}]
    for group in case.groups:
        for rate in RATES:
            cuts = {group.name: kept_count(group.size, rate)}
            saved = prober.bytes_saved(cuts) / prober.reference.parameter_bytes
            row = {"model": case.name, "group": group.name, "rate": rate, "saved": saved}
            rows.append({**row, **both(cuts)})
            print(rows[-1], flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Groups alone\n",
        "Made by `python benchmarks/curves.py`, which says what is measured. Distance in"
        " thousandths of a nat per image.\n",
        "| model | group | rate | memory saved | as built | statistics replaced |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {r['group']} | {r['rate']:.0%} | {r['saved']:.2%}"
            f" | {1e3 * r['followed']:.1f} | {1e3 * r['replaced']:.1f} |"
        )
    return "\n".join([*lines, "", f"{described()}.", ""])


def main() -> None:
    torch.set_num_threads(1)
    rows = rows_of(Case(source="sdt_v2_digits", data="digits", batch_size=450))
    if len(sys.argv) > 1:
        rows += rows_of(Case(source=CIFAR, data=sys.argv[1]))
    save("curves", rows)
    (RESULTS / "curves.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()

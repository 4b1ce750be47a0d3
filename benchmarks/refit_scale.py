"""Time and peak memory of statistics, obs order and refit on a full-size network.

    python benchmarks/refit_scale.py [MODEL] [IMAGES]     # sdt_v2_31m 32; results/refit_scale.json

Random weights, synthetic images at the model's own input size, one time step, batches of 8, one
thread. All groups are cut by half. Peak memory is that of the whole process.
"""

from __future__ import annotations

import sys
import time

import torch
from machine import RESULTS, described, peak_bytes, save
from torch import nn

from primesvt.calibration import ActivationStatistics, calibration_of
from primesvt.channels import remove_channels, trace
from primesvt.importance import CriterionContext, find_importance, keep
from primesvt.models import create_model, model_entry
from primesvt.models.shared_prefix import VariantBatch
from primesvt.profiling.memory import parameter_bytes, parameter_count
from primesvt.recovery import Refit


def main() -> None:
    torch.set_num_threads(1)
    name = sys.argv[1] if len(sys.argv) > 1 else "sdt_v2_31m"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    torch.manual_seed(0)
    model = create_model(name, time_steps=1).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)  # so that neurons fire
    images = torch.randn(count, *model_entry(name).data.input_size)
    row = {"model": name, "parameters": parameter_count(model), "images": count}
    row["bytes_before_statistics"] = peak_bytes()
    graph = trace(model, images[:1])
    inputs = calibration_of(images, batch_size=8)
    activity = ActivationStatistics(
        model=model, graph=graph, groups=graph.prunable(), calibration=inputs
    )
    begin = time.perf_counter()
    readers = [reader for own in activity.readers.values() for reader in own]
    for reader in (next(r for r in readers if r.taps == 1), next(r for r in readers if r.taps > 1)):
        activity.inputs(reader)  # all of its kind in one pass
    _ = activity.norms
    row["seconds_statistics"] = round(time.perf_counter() - begin, 1)
    begin = time.perf_counter()
    evidence = CriterionContext(model=model, graph=graph, activity=activity)
    order = {g.name: find_importance("obs")(evidence, g) for g in graph.prunable()}
    row["seconds_obs"] = round(time.perf_counter() - begin, 1)
    kept = {g.name: keep(order[g.name], max(1, g.size // 2)) for g in graph.prunable()}
    recovery = Refit(activity=activity)
    before = parameter_bytes(model)
    begin = time.perf_counter()
    recovery.before(model, kept)
    row["seconds_refit"] = round(time.perf_counter() - begin, 1)
    begin = time.perf_counter()
    remove_channels(model, graph, kept)
    recovery.after(VariantBatch(networks=[model]), [kept])
    row["seconds_cut_and_batch_norm"] = round(time.perf_counter() - begin, 1)
    row["saved"] = 1 - parameter_bytes(model) / before
    row["peak_bytes"] = peak_bytes()
    save("refit_scale", [row])
    lines = [f"- {key}: {value}" for key, value in row.items()]
    (RESULTS / "refit_scale.md").write_text("\n".join([*lines, "", f"{described()}.", ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Every command and family on a GPU against the CPU: same groups, plans and accuracies, and times.

    python benchmarks/gpu_check.py       # results/gpu_check.json and .md, a few minutes

Runs the command line as a user does, once with ``--device cpu`` and once with ``--device cuda``,
for a trained network of each family in ``checkpoints/``. Which positions a plan keeps must agree
where nothing is measured but weights (policy ``uniform``, importance ``l2``, recovery ``none``);
where accuracies decide, sums that are rounded elsewhere may flip a spike, so plans may differ and
the accuracies must lie within each other's confidence intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, machine, save

HERE = Path(__file__).parent.parent
CHECKPOINTS = HERE / "checkpoints"
NETWORKS: Mapping[str, tuple[str, str]] = {
    "sdt_v2_digits": ("sdt_v2_digits", "digits"),
    **{
        name: (str(CHECKPOINTS / name), str(HERE / "data" / "cifar10"))
        for name in ("cifar10_seed0", "cifar10_spikformer_seed0", "cifar10_qkformer_seed0")
    },
}
MODELS = ("sdt_v1_small", "sdt_v3_small", "spikformer_small", "qkformer_small", "sdt_v2_small")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One check: what it found on both devices, whether they agree, and the seconds of both."""

    check: str
    agrees: bool
    cpu: Any
    cuda: Any
    seconds_cpu: float
    seconds_cuda: float


def primesvt(*arguments: str) -> dict[str, Any]:
    """Run a command and read the JSON object that it prints; its words are the error's."""
    command = [sys.executable, "-m", "primesvt", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stderr or done.stdout)[-600:]}")
    return dict(json.loads(done.stdout))


def on_both(check: str, work: Callable[[str], Any], agree: Callable[[Any, Any], bool]) -> Row:
    """Do the same on both devices, and compare; an error is a finding that agrees with nothing."""
    found, seconds = [], []
    for device in ("cpu", "cuda"):
        begin = time.monotonic()
        try:
            found.append(work(device))
        except (RuntimeError, ValueError, OSError) as error:
            found.append({"error": str(error)})
        seconds.append(round(time.monotonic() - begin, 1))
    failed = any(isinstance(each, dict) and "error" in each for each in found)
    row = Row(
        check=check,
        agrees=not failed and agree(*found),
        cpu=found[0],
        cuda=found[1],
        seconds_cpu=seconds[0],
        seconds_cuda=seconds[1],
    )
    print(json.dumps(asdict(row)), flush=True)
    return row


def logits_agree(name: str) -> Row:
    """The answers of an untrained network that fires: nine in ten must be equal."""
    from primesvt.models import create_model

    torch.manual_seed(0)
    model = create_model(name)
    images = torch.randn(64, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of these images, so that neurons fire
    with torch.no_grad():
        for _ in range(4):
            model.train()(images)
    model.eval()

    def work(device: str) -> list[int]:
        with torch.no_grad():
            return list(map(int, model.to(device)(images.to(device)).argmax(1)))

    def agree(one: list[int], other: list[int]) -> bool:
        same = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
        return len(set(one)) > 1 and same >= 0.9

    return on_both(f"{name}: forward", work, agree)


def checks(out: Path, name: str) -> list[Row]:
    """All checks of one network."""
    model, data = NETWORKS[name]
    given = (model, "--data", data, "--batch-size", "256")

    def evaluate(device: str) -> Any:
        found = primesvt("evaluate", *given, "--device", device)
        return {"accuracy": found["accuracy"], "interval": found["interval"]}

    def prune(*options: str) -> Callable[[str], Any]:
        def work(device: str) -> Any:
            run = out / "-".join([name, device, *(o.strip("-") for o in options)])
            asked = ("--device", device, "--out", str(run), *options)
            found = primesvt("prune", *given, *asked)["metrics"]
            steps = json.loads((run / "plan.json").read_text())["steps"]
            test = (found.get("after") or {}).get("test") or {}
            return {
                "saving": found["saving"],
                "drop": found["drop"],
                "test": test.get("accuracy"),
                "interval": [test.get("low"), test.get("high")],
                "plan": [[step["group"], step["after"]] for step in steps],
            }

        return work

    weights_alone = prune(
        *("--policy", "uniform", "--importance", "l2", "--recovery", "none", "--gate", "point"),
        *("--max-accuracy-drop", "60", "--min-memory-saving", "0.3"),
    )
    rows = [
        on_both(f"{name}: evaluate", evaluate, near),
        on_both(f"{name}: prune, weights alone decide", weights_alone, same_plan),
        on_both(f"{name}: prune --preset paper", prune("--preset", "paper"), near),
    ]
    if name in ("sdt_v2_digits", "cifar10_seed0"):
        rows.append(on_both(f"{name}: prune", prune(), near))
    return rows


def near(one: Any, other: Any) -> bool:
    """Whether each accuracy lies in the other's confidence interval."""
    key = "test" if "test" in one else "accuracy"
    low, high = one["interval"]
    return bool(low <= other[key] <= high)


def same_plan(one: Any, other: Any) -> bool:
    """Whether the same channels of the same groups go."""
    return bool(one["plan"] == other["plan"])


def page(rows: list[Row]) -> str:
    """The findings as a table."""
    lines = ["| check | agrees | CPU, s | GPU, s |", "|---|---|---:|---:|"]
    lines += [
        f"| {row.check} | {'yes' if row.agrees else '**no**'} | {row.seconds_cpu} |"
        f" {row.seconds_cuda} |"
        for row in rows
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    return "\n".join([*lines, "", f"GPU {gpu}, {facts}; command: `python benchmarks/gpu_check.py`"])


def main() -> None:
    """Check, and write the results."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: nothing to check")
    rows = [logits_agree(name) for name in MODELS]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.networks:
            rows += checks(Path(folder), name)
    saved = save("gpu_check", [asdict(row) for row in rows])
    text = page(rows) + "\n"
    for path, content in (("gpu_check.json", saved.read_text()), ("gpu_check.md", text)):
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / path).write_text(content)
    (RESULTS / "gpu_check.md").write_text(text)


if __name__ == "__main__":
    main()

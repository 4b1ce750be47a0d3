"""What training code writes around weights: containers, prefixes, counters, other names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import primesvt
from primesvt.cli import main
from primesvt.models import create_model, to_official

MODEL = create_model("sdt_v2_digits", pretrained=True).eval()
STATE = to_official(MODEL)
ZEROS = {name: value * 0 for name, value in STATE.items()}
X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def after(prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in STATE.items()}


WRITTEN: dict[str, Callable[[], dict[str, Any]]] = {
    "model_state_dict": lambda: {"epoch": 1, "model_state_dict": STATE},
    "net": lambda: {"net": STATE, "acc": 93.1},
    "a name of one's own": lambda: {"weights_of_mine": STATE, "epoch": 2},
    "Lightning": lambda: {"state_dict": after("model.")},
    "FSDP": lambda: {"model": after("_fsdp_wrapped_module.")},
    "AveragedModel": lambda: {"n_averaged": torch.tensor(5), **after("module.")},
    "compiled": lambda: {
        k.replace("block3.0.", "block3.0._orig_mod."): v for k, v in STATE.items()
    },
    "thop": lambda: {**STATE, "total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "no counts": lambda: {k: v for k, v in STATE.items() if "num_batches" not in k},
}


def saved(folder: Path, content: dict[str, Any]) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def same(path: Path, **options: Any) -> bool:
    with torch.no_grad():
        return torch.equal(primesvt.load(path, quiet=True, **options)(X), MODEL(X))


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_weights_are_found(kind: str, tmp_path: Path) -> None:
    assert same(saved(tmp_path, WRITTEN[kind]()))


def test_of_two_candidates_it_is_said_which_was_taken(tmp_path: Path) -> None:
    path = saved(tmp_path, {"ema": STATE, "model": ZEROS})
    assert same(path) and not same(path, container="model")
    notes = " ".join(primesvt.load(path, quiet=True).loaded.notes)
    assert "ema" in notes and "container" in notes
    with pytest.raises(ValueError, match="'best'"):
        primesvt.load(path, container="best")


def test_a_key_map_renames(tmp_path: Path) -> None:
    renamed = {"net." + name.replace("block3", "third"): v for name, v in STATE.items()}
    path = saved(tmp_path, {**renamed, "aux.weight": torch.zeros(2)})
    names = {"third.*": "block3.*", "aux.*": None}  # behind the prefix that all names have
    assert same(path, key_map=names)
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(names))
    assert same(path, key_map=tmp_path / "names.yaml")
    words = ["evaluate", str(path), "--key-map", str(tmp_path / "names.yaml"), "--data", "digits"]
    assert main(words) == 0


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        ({"nothing.like.it": "head.weight"}, "nothing.like.it"),
        ({"block3.*": "block3"}, r"\*"),
        ("no mapping", "key map"),
    ],
)
def test_a_key_map_that_does_not_fit_is_told(names: Any, phrase: str, tmp_path: Path) -> None:
    path = saved(tmp_path, STATE)
    if isinstance(names, str):
        (tmp_path / "names.yaml").write_text(names)
        names = tmp_path / "names.yaml"
    with pytest.raises(ValueError, match=phrase):
        primesvt.load(path, key_map=names, quiet=True)


def test_a_foreign_network_is_told_in_one_line(tmp_path: Path, capsys) -> None:
    path = saved(
        tmp_path, {"conv1.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(4, 8)}
    )
    assert main(["inspect", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "fit" in line and "primesvt.prune" in line

"""What files ``primesvt.load`` reads, and what it says of those that it cannot use."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import primesvt
from primesvt.checkpoint.folder import save_model
from primesvt.models import create_model, list_models, to_official
from primesvt.models.official.read import SAFE_GLOBALS, read_state_file

from .official_files import FILES, golden

Weights = dict[str, Tensor]


@pytest.fixture(scope="session")
def weights() -> Weights:
    torch.manual_seed(0)
    return to_official(create_model("spikformer_digits"))


def same_weights(model: Any, weights: Weights) -> bool:
    found = to_official(model)
    return found.keys() == weights.keys() and all(
        torch.equal(found[key], tensor) for key, tensor in weights.items()
    )


class Opens:
    """Pickled, it writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Fraction(3, 4), "fractions.Fraction"),
        (nn.Linear(2, 1), "torch.nn.modules.linear.Linear"),
        (len, "len"),
        (re.compile("a"), "re._compile"),
    ],
)
def test_what_is_refused_is_named(value, name, zipped, weights, tmp_path):
    file = tmp_path / "checkpoint.pth"
    content = {"model": weights, "extra": value}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"checkpoint.pth holds .*{name}, which is not") as error:
        primesvt.load(file)
    assert "only tensors, plain values, argparse.Namespace and pathlib paths are" in str(
        error.value
    )


def test_no_pickled_code_runs(weights, tmp_path):
    torch.save({"model": weights, "extra": Opens(tmp_path / "ran")}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="getattr, which is not unpickled"):
        primesvt.load(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "ran").exists()


def test_other_pickle_protocols_are_named(weights, tmp_path):
    torch.save({"model": weights}, tmp_path / "checkpoint.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match=r"pth was written with pickle_protocol=4.* save it again"):
        primesvt.load(tmp_path / "checkpoint.pth")


def test_nothing_is_safe_but_namespaces_and_paths():
    names = {entry[1] if isinstance(entry, tuple) else entry for entry in SAFE_GLOBALS}
    paths = {f"{p}{kind}Path" for p in ("", "Pure") for kind in ("", "Posix", "Windows")}
    homes = ("pathlib", "pathlib._local")
    assert names == {argparse.Namespace, *(f"{home}.{path}" for home in homes for path in paths)}
    made = {entry[0] for entry in SAFE_GLOBALS if isinstance(entry, tuple)}
    assert made == {pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath}


@pytest.mark.parametrize(
    "path", [Path("runs/a"), pathlib.PurePosixPath("runs"), PureWindowsPath("C:/runs")], ids=repr
)
def test_paths_and_arguments_of_training_scripts_load(path, weights, tmp_path):
    args = argparse.Namespace(output=path, lr=1e-3, opt_betas=None, milestones=[1, 2])
    torch.save({"model": weights, "args": args}, tmp_path / "checkpoint.pth")
    assert same_weights(primesvt.load(tmp_path / "checkpoint.pth"), weights)


@pytest.mark.parametrize("home", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("kind", ["WindowsPath", "PosixPath"])
def test_paths_of_other_systems_and_pythons_load(home, kind, weights, tmp_path):
    file = tmp_path / "checkpoint.pth"
    content = {"model": weights, "args": argparse.Namespace(output=Path("runs"))}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    pickled = file.read_bytes()
    assert pickled.count(b"cpathlib\nPosixPath\n") == 1
    file.write_bytes(pickled.replace(b"cpathlib\nPosixPath\n", f"c{home}\n{kind}\n".encode()))
    assert same_weights(primesvt.load(file), weights)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("file", ["checkpoint.pth", "legacy.pth.tar", "model.safetensors"])
def test_files_cut_short_are_said_to_be(file, kept, weights, tmp_path):
    whole = tmp_path / file
    if whole.suffix == ".safetensors":
        save_file(weights, whole)
    else:
        zipped = "legacy" not in file
        torch.save({"model": weights}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    size = kept if isinstance(kept, int) else int(len(content) * kept)
    whole.write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"{re.escape(file)} \({size:,} bytes\): it is cut short"):
        primesvt.load(whole)


def in_module(weights: Weights, prefix: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + key, tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("key", [None, "model", "state_dict", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappings_come_off(key, prefix, weights, tmp_path):
    inside = in_module(weights, prefix)
    torch.save({key: inside, "epoch": 3} if key else inside, tmp_path / "checkpoint.pt")
    assert same_weights(primesvt.load(tmp_path / "checkpoint.pt"), weights)


def test_averaged_weights_come_first_and_it_is_said(weights, tmp_path):
    raw = {key: tensor + 1 for key, tensor in weights.items()}
    torch.save({"state_dict": raw, "state_dict_ema": weights}, tmp_path / "checkpoint.pth.tar")
    model = primesvt.load(tmp_path / "checkpoint.pth.tar")
    assert same_weights(model, weights)
    told = (
        "the averaged weights 'state_dict_ema' are taken, not 'state_dict'; --container state_dict"
    )
    assert any(note.startswith(told) for note in model.loaded.notes)
    other = primesvt.load(tmp_path / "checkpoint.pth.tar", container="state_dict")
    assert same_weights(other, raw)


def test_what_is_no_tensor_is_left_out_aloud(weights, tmp_path):
    torch.save({**weights, "step": 3}, tmp_path / "checkpoint.pth")
    model = primesvt.load(tmp_path / "checkpoint.pth")
    assert same_weights(model, weights)
    assert "left out of the weights, being no tensors: step" in model.loaded.notes


def test_weights_that_are_there_twice_are_refused(weights, tmp_path):
    torch.save({"head.bias": torch.ones(1), "module.head.bias": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds 'head\.bias' twice"):
        read_state_file(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {}}, 7], ids=repr)
def test_a_file_without_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds (no state dict|an? \w+, not a state dict)"):
        primesvt.load(tmp_path / "a.pth")


FAMILY_OF = {"sdt1": "sdt_v1", "sdt2": "sdt_v2"}


@pytest.mark.parametrize("name", FILES)
def test_what_fits_no_family_is_told_from_the_nearest(name, shared, tmp_path):
    state, _ = golden(shared / "reference", name)
    gone = [key for key in state if key.endswith("running_var")][-12:]
    bent = [key for key in state if key.endswith("running_mean")][-11:]
    spoilt: Weights = {key: tensor for key, tensor in state.items() if key not in gone}
    spoilt |= {key: torch.zeros(len(state[key]) + 1) for key in bent}
    spoilt |= {f"surplus.{index:02}": torch.zeros(1) for index in range(13)}
    save_file(spoilt, tmp_path / "weights.safetensors")

    with pytest.raises(ValueError, match="fit no family; nearest is ") as error:
        primesvt.load(tmp_path / "weights.safetensors")
    told = str(error.value)
    family = {"sdt3-base": "sdt_v3", "sdt3-large": "sdt_v3_large"}.get(
        "-".join(name.split("-")[:2]), FAMILY_OF.get(name.split("-")[0], name.split("-")[0])
    )
    assert str(tmp_path / "weights.safetensors") in told
    assert f"nearest is {family} (" in told
    assert f"{len(gone)} missing (" in told
    assert f"13 extra ({', '.join(f'surplus.{i:02}' for i in range(10))}, and 3 more)" in told
    assert f"{len(bent)} of another shape (" in told
    assert told.count(" instead of ") == 10


def test_names_of_our_own_are_known(tmp_path):
    save_file(create_model("spikformer_digits").state_dict(), tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="they have PrimeSVT's own names"):
        primesvt.load(tmp_path / "ours.safetensors")


def test_a_registered_name_is_no_file():
    with pytest.raises(ValueError, match="sdt_v2_15m is a registered name, no file"):
        primesvt.load("sdt_v2_15m")
    with pytest.raises(ValueError, match=r"no checkpoint file 'gone\.pth'"):
        primesvt.load("gone.pth")


@pytest.mark.parametrize("name", [name for name in list_models() if name.endswith("_digits")])
def test_our_own_folders_load(name, tmp_path, capsys):
    model = create_model(name).eval()
    save_model(model, tmp_path / "run" / "model")
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    for path in ("run", "run/model", "run/model/model.safetensors", "run/model/config.json"):
        again = primesvt.load(tmp_path / path)
        assert again.config == model.config
        assert torch.equal(again(images), model(images))
    assert capsys.readouterr() == ("", "")


def test_a_module_to_fill_is_for_folders_of_such_modules(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"into= is for folders that PrimeSVT wrote, and .*a\.pth"):
        primesvt.load(tmp_path / "a.pth", into=nn.Linear(2, 1))

    mine = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    save_model(mine, tmp_path / "mine")
    with pytest.raises(ValueError, match="into"):
        primesvt.load(tmp_path / "mine")
    with pytest.raises(ValueError, match="has no settings to override"):
        primesvt.load(tmp_path / "mine", into=nn.Sequential(*mine), time_steps=2)

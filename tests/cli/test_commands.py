"""The commands on the bundled model, from start to end, for a person and for a machine."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from primesvt import Constraints, prune
from primesvt.checkpoint.folder import save_model
from primesvt.checkpoint.load import open_model
from primesvt.cli import main
from primesvt.cli.app import parse
from primesvt.config import PRESETS, PruneConfig
from primesvt.models import create_model, list_models, to_official

GROUP = "blocks.block3_0.mlp.fc1"
QUICK = ("--include", GROUP, "--rates", "0.25", "0.5", "--batch-size", "450")
PAPER = (*QUICK, "--preset", "paper")
# Where a run is needed, however it is made.
BARE = (*PAPER, "--no-verify")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """A run that tests copy, and what its command printed."""

    folder: Path
    out: str

    def into(self, folder: Path) -> Ran:
        return dataclasses.replace(self, folder=shutil.copytree(self.folder, folder))


def ran(folder: Path, *words: str) -> Ran:
    """Prune the bundled model into ``run``, as if that folder were the working directory."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "80")
        assert main(["prune", "sdt_v2_digits", *words, "--out", "run"]) == 0
    return Ran(folder=folder / "run", out=printed.getvalue())


@pytest.fixture(scope="module")
def _by_defaults(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return ran(tmp_path_factory.mktemp("defaults"), *QUICK)


@pytest.fixture(scope="module")
def _by_paper(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return ran(tmp_path_factory.mktemp("paper"), *PAPER)


@pytest.fixture
def by_defaults(_by_defaults: Ran) -> Ran:
    """``run`` in the working directory, made with the defaults."""
    return _by_defaults.into(Path("run"))


@pytest.fixture
def by_paper(_by_paper: Ran) -> Ran:
    """``run`` in the working directory, made with the paper's method."""
    return _by_paper.into(Path("run"))


def test_models_lists_the_registry(primesvt):
    finished = primesvt("models", "--json")
    assert finished.code == 0
    rows = {row["name"]: row for row in finished.json["models"]}
    assert list(rows) == list_models()
    assert rows["sdt_v2_15m"]["parameters"] == 15_112_208
    assert rows["spikformer_8_512"]["published"]["top1"] == 73.38
    assert "README" in rows["spikformer_8_512"]["published"]["source"]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_figure_of_the_registry_is_cut_off(primesvt, columns, monkeypatch):
    listed = {row["name"]: row for row in primesvt("models", "--json").json["models"]}
    monkeypatch.setenv("COLUMNS", columns)
    out = primesvt("models").out
    lines = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    for name, row in listed.items():
        size = "x".join(map(str, row["input_size"]))
        expected = [f"{row['parameters']:,}", size, f"{row['num_classes']:,}"]
        expected.append(str(row["time_steps"]))
        if row["published"]:
            expected += [str(row["published"]["top1"]), lines[name][-1]]
            assert f"  {lines[name][-1]}  {row['published']['source']}" in out
        assert lines[name] == expected


def test_tables_fit_80_columns(primesvt):
    for words in (
        ["models"],
        ["inspect", "sdt_v2_digits"],
        ["inspect", "sdt_v2_digits", "--groups"],
    ):
        finished = primesvt(*words)
        assert finished.code == 0
        assert max(len(line.rstrip()) for line in finished.out.splitlines()) <= 80


@pytest.mark.quick
def test_inspect_names_every_layer_and_says_why_not(primesvt):
    found = primesvt("inspect", "sdt_v2_digits", "--json").json
    model = create_model("sdt_v2_digits")
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert GROUP in {group["name"] for group in found["groups"] if group["prunable"]}
    assert all(row["prunable"] or row["reason"] for row in found["layers"])


def test_inspect_reads_official_checkpoints(primesvt):
    model = create_model("sdt_v2_small")
    state = to_official(model)
    save_file(state, "a.safetensors")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, "a.pth")
    found = [primesvt("inspect", name, "--json").json for name in ("a.safetensors", "a.pth")]
    assert found[0]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found[0]["layers"] == found[1]["layers"]


def test_evaluate_measures_the_bundled_model(primesvt):
    found = primesvt("evaluate", "sdt_v2_digits", "--batch-size", "450", "--json").json
    low, high = found["interval"]
    assert found["images"] == 450
    assert 0.96 <= found["accuracy"] <= 1
    assert low < found["accuracy"] < high


def test_a_folded_copy_is_measured_where_asked_for(primesvt):
    words = ("evaluate", "sdt_v2_digits", "--batch-size", "450")
    whole, folded = primesvt(*words, "--json").json, primesvt(*words, "--folded", "--json").json
    assert abs(folded["accuracy"] - whole["accuracy"]) < 0.01
    assert folded["parameters"] == whole["parameters"]
    assert "Batch norms were folded" in folded["notes"][-1]
    refused = primesvt(*words, "--folded", "--device", "cuda")
    assert (refused.code, "leave one of them out" in refused.err) == (1, True)


@pytest.mark.quick
def test_prune_writes_a_run_folder_that_evaluates_and_applies(primesvt):
    finished = primesvt("prune", "sdt_v2_digits", *BARE, "--out", "run", "--json")
    assert finished.code == 0
    metrics = finished.json["metrics"]
    assert metrics["after"]["parameter_bytes"] < metrics["before"]["parameter_bytes"]
    written = {path.name for path in Path("run").iterdir()}
    assert {"recipe.yaml", "plan.json", "metrics.json", "model", "report.html"} <= written

    evaluated = primesvt("evaluate", "run", "--json").json
    assert evaluated["accuracy"] == metrics["after"]["test"]["accuracy"]
    assert evaluated["parameter_bytes"] == metrics["after"]["parameter_bytes"]

    applied = primesvt("apply", "run", "sdt_v2_digits", "--out", "small", "--json")
    assert applied.code == 0
    assert applied.json["after"]["parameter_bytes"] == metrics["after"]["parameter_bytes"]
    assert primesvt("evaluate", "small", "--json").json["accuracy"] == evaluated["accuracy"]


def test_prune_closes_with_a_table_and_where_things_lie(by_defaults):
    for phrase in ("Before", "After", "Change", "Top-1", "Parameters", "primesvt.load('run')"):
        assert phrase in by_defaults.out


def test_a_finished_run_is_reported_again(primesvt, by_defaults):
    probes = Path("run/sensitivity.jsonl").read_bytes()
    again = primesvt("prune", "sdt_v2_digits", *QUICK, "--out", "run")
    assert again.out == by_defaults.out
    assert Path("run/sensitivity.jsonl").read_bytes() == probes


def test_a_run_folder_of_another_recipe_is_refused(primesvt, by_defaults):
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    finished = primesvt("prune", "sdt_v2_digits", *QUICK, "--out", "run", "--seed", "7")
    assert finished.code == 1
    assert "run" in finished.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_new_limits_from_a_run_make_no_new_probe(primesvt, by_paper):
    again = ("--max-accuracy-drop", "1", "--from", "run", "--out", "again")
    assert primesvt("prune", "sdt_v2_digits", *PAPER, *again).code == 0
    probes = [Path(name, "sensitivity.jsonl").read_text() for name in ("run", "again")]
    assert probes[0] == probes[1]


def test_limits_that_cannot_be_met_together_exit_with_3_and_keep_the_plan(primesvt):
    limits = ("--max-accuracy-drop", "3", "--min-memory-saving", "0.9")
    finished = primesvt("prune", "sdt_v2_digits", *BARE, *limits, "--out", "run", "--json")
    assert finished.code == 3
    assert finished.json["metrics"]["met"] is False
    assert Path("run/plan.json").exists()
    assert Path("run/report.html").exists()


def test_flags_override_the_recipe_file(primesvt, by_paper):
    words = ("prune", "--recipe", "run/recipe.yaml", "--gate", "bound", "--out", "again")
    assert primesvt(*words).code == 0
    first, second = (
        yaml.safe_load(Path(name, "recipe.yaml").read_text()) for name in ("run", "again")
    )
    assert first["method"].pop("gate") == "point"
    assert second["method"].pop("gate") == "bound"
    assert first == second


def test_only_models_trained_here_have_images_held_out_in_training(primesvt):
    save_file(to_official(create_model("sdt_v2_small")), "official.safetensors")
    official, bundled = open_model("official.safetensors"), open_model("sdt_v2_digits")
    assert not official.held_out
    assert bundled.held_out
    save_model(official.model, "official")
    save_model(bundled.model, "bundled/model")
    assert not open_model("official").held_out
    assert open_model("bundled").held_out
    assert open_model("bundled/model").data == bundled.data


def test_what_is_known_of_a_model_survives_plan_and_cut(primesvt, by_defaults):
    applied = primesvt("apply", "run", "sdt_v2_digits", "--out", "applied")
    assert applied.code == 0
    assert "other weights" not in applied.out
    save_model(create_model("sdt_v2_digits"), "fresh")
    assert "other weights" in primesvt("apply", "run", "fresh", "--out", "other").out
    assert open_model("run").held_out
    assert open_model("applied").held_out


def test_a_run_from_python_opens_on_the_command_line(primesvt):
    result = prune(
        create_model("sdt_v2_digits", pretrained=True),
        data="digits",
        constraints=Constraints(min_memory_saving=None),
        include=[GROUP],
        rates=(0.5,),
        batch_size=450,
        preset="paper",
        verify=False,
        lossless=False,
    )
    folder = result.save("python")
    assert (folder / "report.html").is_file()
    assert primesvt("evaluate", "python", "--batch-size", "450").code == 0


@pytest.mark.quick
def test_presets_mean_the_same_on_the_command_line_and_in_python():
    for preset, values in PRESETS.items():
        asked = parse(["prune", "m", "--preset", preset])._asked()
        assert asked.method == PruneConfig().with_options(preset=preset).method
        assert {name: getattr(asked.method, name) for name in values} == values


@pytest.mark.quick
def test_defaults_mean_the_same_on_the_command_line_and_in_python():
    """The defaults are the preset ``best``."""
    asked = parse(["prune", "m"])._asked()
    assert asked == PruneConfig(model="m")
    assert {n: getattr(asked.method, n) for n in PRESETS["best"]} == PRESETS["best"]

"""One statement of every option: keywords, flags and recipe files ask for the same thing."""

from __future__ import annotations

import json
import shutil
import typing
from pathlib import Path

import pytest
import yaml

from primesvt import Limits, PruneConfig, prune
from primesvt.cli import main
from primesvt.cli.app import parse
from primesvt.config import SECTIONS, PruneOptions, read_recipe
from primesvt.pruning.request import request_of
from primesvt.recovery import Recovery
from primesvt.registry import CRITERIA, POLICIES, RECOVERIES

# Keywords take more than a recipe file can hold.
WIDER = {"include", "exclude", "rates", "policy_options", "importance"}
FEW = {"include": ["*.conv2a.conv1"], "verify": False, "batch_size": 60, "gate": "point"}
QUICK = {**FEW, "policy": "uniform", "importance": "l2", "recovery": "none", "lossless": False}


@pytest.mark.quick
def test_the_keywords_are_the_fields_of_the_config() -> None:
    fields = {n: f for kind in SECTIONS.values() for n, f in kind.model_fields.items()}
    hints = typing.get_type_hints(PruneOptions)
    assert list(hints) == ["preset", "from_run", *fields]
    assert {n for n, field in fields.items() if hints[n] != field.annotation} == WIDER
    assert sum(len(kind.model_fields) for kind in SECTIONS.values()) == len(fields)


@pytest.mark.quick
def test_every_option_has_a_flag_with_its_default_and_help(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["prune", "--help"])
    told = capsys.readouterr().out
    for kind in SECTIONS.values():
        for name, field in kind.model_fields.items():
            flag = f"--{name.replace('_', '-')}"
            no_flag = f"--no-{name.replace('_', '-')}"
            assert name == "policy_options" or flag in told or no_flag in told
            assert field.description
    for registry in (POLICIES, CRITERIA, RECOVERIES):
        assert all(name in told for name in registry.builtin)


@pytest.mark.quick
def test_a_memory_saving_is_asked_for_only_where_the_user_asks() -> None:
    assert Limits().min_memory_saving is None and Limits().required_bytes(1000) == 0
    assert request_of().config.limits == PruneConfig().limits


@pytest.mark.quick
def test_options_of_another_policy_mean_nothing() -> None:
    prime = PruneConfig().with_options(policy="prime", policy_options={"reading": "B"})
    assert prime.with_options(gate="point").method.policy_options == {"reading": "B"}
    assert prime.with_options(policy="uniform").method.policy_options == {}
    assert request_of(prime).method.policy_options["full_curves"] is False
    words = ["prune", "m", "--policy", "prime", "--set", "policy.reading=B"]
    assert parse(words)._asked().method == prime.method


def test_from_python_to_the_command_line_and_back(_pretrained, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    limits = Limits(max_accuracy_drop=8)
    first = prune(_pretrained, data="digits", constraints=limits, out="python", **QUICK)
    words = ["prune", "sdt_v2_digits", "--recipe", "python/recipe.yaml", "--out", "command"]
    assert main(words) == 0
    asked = read_recipe("command/recipe.yaml")
    assert asked == read_recipe("python/recipe.yaml").model_copy(update={"model": "sdt_v2_digits"})
    for name in ("plan.json", "model/model.safetensors"):
        assert Path("python", name).read_bytes() == Path("command", name).read_bytes()
    again = prune(_pretrained, config=asked)
    assert again.plan == first.plan and again.config == asked
    assert main(["prune", "--recipe", "command/recipe.yaml", "--out", "command"]) == 0


def test_another_option_is_another_run(model, digits, tmp_path) -> None:
    """Asked again with ``latency``, a run that has ended is not passed off as one that has it."""
    asked = {**QUICK, "data": digits, "constraints": Limits(max_accuracy_drop=8)}
    prune(model, out=tmp_path / "run", **asked)
    with pytest.raises(ValueError, match=r"run.latency is False there and True here"):
        prune(model, out=tmp_path / "run", latency=True, **asked)
    with pytest.raises(ValueError, match="unknown option 'recipe'"):
        prune(model, recipe={"policy": "allocate"}, **asked)


OLD_COMMAND = """
model: sdt_v2_digits
data: digits
time_steps: null
family: null
override: []
limits: {max_accuracy_drop: 8.0, min_memory_saving: null, max_parameter_memory: null,
  stop_at_saving: false, max_latency: null, latency_batch: 32, latency_runtime: pytorch,
  max_membrane: null}
selection: {include: ['*.conv2a.conv1'], exclude: [], include_streams: false}
method: {policy: POLICY, importance: l2, recovery: none, lossless: false, reading: B, gate: point,
  level: 0.95, confirm: true, exact: false, full_curves: false, race_error: 0.05,
  rates: [0.5, 0.9], channel_multiple: 1, target_threshold: 0.25, order: producer}
run: {device: cpu, batch_size: 60, workers: 0, memory_limit: null, latency: false, seed: 0,
  selection_from_train: false, verify: false}
"""
OLD_PYTHON = """
data: digits
seed: 0
policy: POLICY
importance: l2
recovery: none
gate: point
reading: B
order: producer
target_threshold: 0.25
level: 0.95
confirm: true
lossless: false
exact: false
race_error: 0.05
full_curves: false
rates: [0.5, 0.9]
channel_multiple: 1
include: ['*.conv2a.conv1']
exclude: []
include_streams: false
verify: false
constraints: {max_accuracy_drop: 8.0, min_memory_saving: null, max_parameter_memory: null,
  stop_at_saving: false, max_latency: null, latency_batch: 32, latency_runtime: pytorch,
  max_membrane: null}
"""


@pytest.mark.parametrize("old", [OLD_COMMAND, OLD_PYTHON], ids=["command line", "python"])
@pytest.mark.parametrize("policy", ["prime", "uniform"])
def test_recipes_of_the_first_version_are_read(tmp_path, old: str, policy: str) -> None:
    (tmp_path / "recipe.yaml").write_text(old.replace("POLICY", policy))
    asked = request_of(read_recipe(tmp_path / "recipe.yaml"))
    method = asked.method
    assert (method.policy, method.gate, method.rates) == (policy, "point", (0.5, 0.9))
    own = {"reading": "B", "target_threshold": 0.25, "full_curves": False}
    assert method.policy_options == (own if policy == "prime" else {})
    assert asked.config.limits == Limits(max_accuracy_drop=8)
    assert asked.config.selection.include == ("*.conv2a.conv1",)
    assert asked.config.data == "digits" and not asked.config.run.verify


@pytest.mark.parametrize("old", [OLD_COMMAND, OLD_PYTHON], ids=["command line", "python"])
def test_a_run_of_the_first_version_goes_on(_pretrained, tmp_path, old: str) -> None:
    """Its folder holds a recipe of the older form; only what that states is compared."""
    asked = {**QUICK, "rates": [0.5, 0.9], "data": "digits", "out": tmp_path / "run"}
    asked["constraints"] = Limits(max_accuracy_drop=8)
    first = prune(_pretrained, **asked)
    (tmp_path / "run/metrics.json").unlink()
    (tmp_path / "run/recipe.yaml").write_text(old.replace("POLICY", "uniform"))
    probes = (tmp_path / "run/sensitivity.jsonl").read_bytes()
    assert prune(_pretrained, **asked).plan == first.plan
    assert (tmp_path / "run/sensitivity.jsonl").read_bytes() == probes
    shutil.rmtree(tmp_path / "run/model")
    for other in ({"seed": 1}, {"gate": "bound"}, {"policy": "allocate"}, {"latency": True}):
        with pytest.raises(ValueError, match="a run of another recipe"):
            prune(_pretrained, **asked | other)


def test_a_recipe_with_an_unknown_field_is_one_line(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"method": {"reding": "B"}, "modell": 1}))
    with pytest.raises(ValueError) as refused:
        read_recipe(tmp_path / "recipe.yaml")
    assert "reding: unknown field" in str(refused.value)
    assert "modell: unknown field" in str(refused.value) and "\n" not in str(refused.value)


def test_a_table_without_probes_is_checked_too(_pretrained, tmp_path) -> None:
    """A run that was stopped right after the unpruned network: its lossless step must be ours."""
    asked = {**QUICK, "lossless": True, "data": "digits", "out": tmp_path / "run"}
    prune(_pretrained, constraints=Limits(max_accuracy_drop=8), **asked)
    (tmp_path / "run/metrics.json").unlink()
    table = tmp_path / "run/sensitivity.jsonl"
    reference = json.loads(table.read_text().splitlines()[0])
    reference["context"]["lossless_cuts"] = {"blocks.conv2a.conv1": 7}
    table.write_text(json.dumps(reference) + "\n")
    with pytest.raises(ValueError, match="another lossless cuts"):
        prune(_pretrained, constraints=Limits(max_accuracy_drop=8), **asked)


@pytest.mark.quick
def test_what_needs_no_inputs_stays_where_there_are_none(monkeypatch) -> None:
    """Only the part that needs calibration inputs is replaced, and a note says so."""
    monkeypatch.setattr(RECOVERIES, "_registered", dict(RECOVERIES._registered))

    @RECOVERIES("own")
    class Own(Recovery):
        pass

    found = request_of(options={"importance": "obs", "recovery": "own"}).for_inputs(None)
    assert found.recovery is Own and found.names == {"importance": "l2", "recovery": "own"}
    assert [note.partition(",")[0] for note in found.notes] == ["There were no calibration inputs"]
    kept = request_of(options={"importance": "l1", "recovery": "bn"}).for_inputs(None)
    assert kept.recovery is Recovery and kept.names == {"importance": "l1", "recovery": "none"}


@pytest.mark.quick
def test_a_preset_and_the_options_of_its_policy() -> None:
    """What the preset does not name is free; what it names is not, in Python and by flags."""
    whole = {"full_curves": True}
    asked = request_of(options={"preset": "paper", "policy_options": {"reading": "A"} | whole})
    assert asked.method.policy_options["full_curves"] and asked.method.policy == "prime"
    flags = ["prune", "m", "--preset", "paper", "--set"]
    words = parse([*flags, "policy.full_curves=true"])._asked()
    assert request_of(words).method == asked.method
    for wrong in ("policy.reading=B", "policy.target_threshold=0.5"):
        with pytest.raises(ValueError, match=r"paper means policy_options .*; leave out .* --set"):
            parse([*flags, wrong])._asked()
    with pytest.raises(ValueError, match="paper means policy_options"):
        request_of(options={"preset": "paper", "policy_options": {"reading": "B"}})


@pytest.mark.quick
def test_a_preset_over_a_recipe_of_another_policy(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(OLD_COMMAND.replace("POLICY", "prime"))
    words = ["prune", "--recipe", str(tmp_path / "recipe.yaml"), "--preset", "best"]
    asked = request_of(parse(words)._asked())
    assert asked.method.policy == "allocate" and "reading" not in asked.method.policy_options


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"limits": {"max_accuracy_drop": 2}}, "constraints is .* must be a primesvt.Limits"),
        ({"limits": 3.0}, "constraints is 3.0, but must be a primesvt.Limits"),
        ({"config": "recipe.yaml"}, "config is 'recipe.yaml', but must be a primesvt.PruneConfig"),
    ],
)
def test_what_is_no_config_is_named(options, phrase) -> None:
    with pytest.raises(ValueError, match=phrase):
        request_of(**options)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text", ["1: 2\n", "policy: prime\nmethod: [1]\n", "method: 3\n", "limits: null\n"]
)
def test_recipes_of_strange_content_are_one_line(tmp_path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml: ") as refused:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.quick
@pytest.mark.parametrize("word", ["reading=B", "policy.reading", "policy.=B"])
def test_set_shows_the_word_that_was_given(word: str) -> None:
    with pytest.raises(ValueError, match=f"--set '{word}' is no policy.NAME=VALUE"):
        parse(["prune", "m", "--set", word])._asked()

"""Policies, criteria and recoveries from outside, in Python and on the command line."""

from __future__ import annotations

import inspect
import io
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import primesvt
from primesvt import Limits, export, load, plugins, prune
from primesvt.plugins import CriterionContext, Policy, PolicyResult, Recovery
from primesvt.registry import CRITERIA, EXPORT_FORMATS, POLICIES, RECOVERIES, Registry

from .forked import Forked, forked

ASKED = {
    "limits": Limits(max_accuracy_drop=90),
    "include": ["*.block4_0.mlp.fc1", "*.conv2a.conv1"],
    "batch_size": 60,
    "gate": "point",
    "lossless": False,
    "verify": False,
}

PACKAGE = '''
import numpy as np
from pydantic import Field
from typing import Annotated
from primesvt.plugins import OptionGroup, Policy, PolicyResult, Recovery

class Alike(Policy):
    """All groups keep the same share of their channels."""

    class Options(OptionGroup):
        share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    rates = (0.25, 0.5, 0.75)

    def search(self, grids, prober):
        cuts = {grid.group: grid.at(1 - self.options.share) for grid in grids}
        prober.tell("all alike", 1, 1)
        probe = prober.probe(cuts)
        return PolicyResult.of(grids, probe, self.gate.judge(probe))

def last_channels(context, group):
    return np.tile(np.arange(group.size, dtype=float), (group.positions, 1))

class Doubled(Recovery):
    """Does nothing but say so."""

    def describe(self, group):
        return "a plug-in"
'''
PACKAGE += """
import dataclasses, io
import torch
from primesvt.models.families import FAMILIES
from primesvt.plugins import FileFormat, Payload

known = FAMILIES["sdt_v2"]

@dataclasses.dataclass(frozen=True, kw_only=True)
class MyConfig(known.config):
    family = "mine"

entry = next(each for each in known.entries() if each.name == "sdt_v2_digits")
values = {f.name: getattr(entry.config, f.name) for f in dataclasses.fields(MyConfig)}
FAMILY = dataclasses.replace(known, config=MyConfig, entries=lambda: [
    dataclasses.replace(entry, name="mine_digits", config=MyConfig(**values), weights=None)
])

class StateFormat(FileFormat):
    file_name = "model.state"

    def payload(self, made, example, job):
        buffer = io.BytesIO()
        torch.save(made.network.state_dict(), buffer)

        def run(content):
            made.network.load_state_dict(torch.load(io.BytesIO(content)))
            return lambda batch: [made.network(batch)]

        content = buffer.getvalue()
        return Payload(content=content, run=run, watched=run(content), neurons=(), sizes=())
"""
ENTRY_POINTS = """
[primesvt.policies]
alike = mine:Alike
[primesvt.importances]
last_channels = mine:last_channels
[primesvt.recoveries]
doubled = mine:Doubled
[primesvt.families]
mine = mine:FAMILY
[primesvt.export_formats]
state = mine:StateFormat
"""

# Each command runs in a process of its own, where the package is installed.
COMMANDS = """
import contextlib, os, sys
os.chdir({folder!r})
sys.path.insert(0, "site")
import primesvt.cli, primesvt.report

def main(*words):
    with open("stdout", "w") as out, open("stderr", "w") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = primesvt.cli.main(list(words))
    os._exit(code)
"""


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (POLICIES, CRITERIA, RECOVERIES):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def options() -> dict:
    return {name: value for name, value in ASKED.items() if name != "limits"}


def test_a_policy_a_criterion_and_a_recovery_in_python(registries, model, digits) -> None:
    asked: dict = {}

    @primesvt.policy("first_rate")
    class FirstRate(Policy):
        rates = (0.25,)

        def search(self, grids, prober) -> PolicyResult:
            asked["grids"] = grids
            probe = prober.probe({grid.group: grid.at(0.25) for grid in grids})
            return PolicyResult.of(grids, probe, self.gate.judge(probe))

    @primesvt.criterion("reversed", needs_inputs=False)
    def backwards(context: CriterionContext, group):
        return np.tile(-np.arange(group.size, dtype=float), (group.positions, 1))

    @primesvt.recovery("zero_bias")
    class ZeroBias(Recovery):
        def after(self, batch, cuts, common=None) -> None:
            for network in batch.networks:
                network.head.fc.bias.data.zero_()

        def describe(self, group: str) -> str:
            return "no bias at the end"

    chosen = {"policy": "first_rate", "importance": "reversed", "recovery": "zero_bias"}
    result = prune(model, data=digits, constraints=ASKED["limits"], **options(), **chosen)
    assert [step.rate for step in result.plan.steps] == [0.25, 0.25]
    assert {step.recovery for step in result.plan.steps} == {"no bias at the end"}
    kept = result.plan.groups["blocks.block4_0.mlp.fc1"]
    assert kept == (tuple(range(120)),)
    assert not result.model.head.fc.bias.any()
    assert result.config.method.rates == (0.25,) and len(asked["grids"]) == 2


def test_a_function_ranks_the_channels_and_is_asked_for_again(
    model, digits, tmp_path, monkeypatch
) -> None:
    asked = {**options(), "policy": "uniform", "rates": [0.5], "recovery": "none"}
    asked |= {"constraints": ASKED["limits"], "data": digits, "out": tmp_path / "run"}
    first = prune(model, importance=first_channels_last, **asked)
    assert first.plan.groups["blocks.block4_0.mlp.fc1"] == (tuple(range(80, 160)),)
    recipe = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    name = f"{__name__}:first_channels_last"
    assert recipe["method"]["importance"] == name
    (tmp_path / "run/metrics.json").unlink()
    assert prune(model, importance=first_channels_last, **asked).plan == first.plan
    with pytest.raises(ValueError, match="give it again as importance="):
        prune(model, importance=name, **asked)
    source = inspect.getsource(first_channels_last)
    monkeypatch.setattr(inspect, "getsource", lambda _: source.replace("float", "int"))  # edited
    with pytest.raises(ValueError, match="probes of another importance source"):
        prune(model, importance=first_channels_last, **asked)


def first_channels_last(context: CriterionContext, group):
    return np.tile(np.arange(group.size, dtype=float), (group.positions, 1))


@pytest.mark.parametrize(
    "wrong", [lambda c, g: np.zeros(3), lambda c, g: np.full((g.positions, g.size), np.nan)]
)
def test_scores_of_another_shape_are_refused(model, digits, wrong) -> None:
    with pytest.raises(ValueError, match="finite numbers of shape \\[1, 64\\]"):
        prune(
            model,
            data=digits,
            importance=wrong,
            constraints=ASKED["limits"],
            **{**options(), "include": ["*.conv2a.conv1"]},
        )


def test_what_is_no_policy_is_refused(registries, model, digits) -> None:
    plugins.policy("nothing")(object())
    with pytest.raises(ValueError, match=r"'nothing' is .* must extend primesvt.plugins.Policy"):
        prune(model, data=digits, policy="nothing")


def test_a_name_is_given_once(registries) -> None:
    with pytest.raises(ValueError, match=r"policy 'prime' is already primesvt\.pruning"):
        plugins.policy("prime")(Policy)
    plugins.policy("mine")(Policy)
    plugins.policy("mine")(Policy)  # its module was imported again
    with pytest.raises(ValueError, match="'mine' is already"):
        plugins.policy("mine")(Recovery)


def test_another_package_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "site/mine-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site/mine.py").write_text(PACKAGE)
    (tmp_path / "site/mine-1.0.dist-info/METADATA").write_text("Name: mine\nVersion: 1.0\n")
    (tmp_path / "site/mine-1.0.dist-info/entry_points.txt").write_text(ENTRY_POINTS)
    with forked(COMMANDS.format(folder=str(tmp_path))) as start:
        commands_of_another_package(tmp_path, start)


def commands_of_another_package(tmp_path: Path, start: Forked) -> None:
    def primesvt(*words: str) -> SimpleNamespace:
        code = start(*words)
        said = {name: (tmp_path / name).read_text() for name in ("stdout", "stderr")}
        return SimpleNamespace(returncode=code, **said)

    helped = primesvt("prune", "--help").stdout
    assert "random,alike" in helped and "none,doubled" in helped.replace(" │\n│ ", "")
    wanted = "--policy alike --importance last_channels --recovery doubled --gate point --no-verify"
    where = "--include *.conv2a.conv1 --max-accuracy-drop 90 --batch-size 450 --no-lossless --json"
    words = ["prune", "sdt_v2_digits", *wanted.split(), *where.split()]
    done = primesvt(*words, "--set", "policy.share=0.25")
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["plan"]["steps"]
    assert step["after"] == [1, 16] and step["recovery"] == "a plug-in"
    kept = json.loads(done.stdout)["plan"]["groups"]["blocks.conv2a.conv1"]
    assert kept == [list(range(48, 64))]
    recipe = yaml.safe_load((tmp_path / "runs/sdt_v2_digits/recipe.yaml").read_text())
    assert recipe["method"]["policy_options"] == {"share": 0.25}
    assert recipe["method"]["rates"] == [0.25, 0.5, 0.75]
    assert load(tmp_path / "runs/sdt_v2_digits")(torch.rand(1, 1, 8, 8)).shape == (1, 10)
    listed = json.loads(primesvt("models", "mine*", "--json").stdout)["models"]
    assert [(row["name"], row["family"], row["parameters"]) for row in listed] == [
        ("mine_digits", "mine", 116122)
    ]
    exported = primesvt("export", "runs/sdt_v2_digits", "--format", "state")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "runs/sdt_v2_digits/export/model.state").is_file()
    wrong = primesvt(*words, "--set", "policy.share=2", "--out", "other")
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "primesvt: policy alike: share: 2, input should be less than 1"


def test_a_registry_lists_its_own_names_first() -> None:
    registry = Registry("thing", group="tests.things", builtin={"a": "math:pi", "b": "math:e"})
    registry("c")(object)
    assert registry.names() == ("a", "b", "c")
    with pytest.raises(ValueError, match="unknown thing 'aa'; known: a, b, c; did you mean a"):
        registry.find("aa")


def test_an_export_format_of_another_package(monkeypatch, model, tmp_path) -> None:
    monkeypatch.setattr(EXPORT_FORMATS, "_registered", dict(EXPORT_FORMATS._registered))

    @primesvt.export_format("state")
    class StateFormat(plugins.FileFormat):
        """The weights of the deployed network, saved by PyTorch."""

        file_name = "model.state"

        def payload(self, made, example, job) -> plugins.Payload:
            buffer = io.BytesIO()
            torch.save(made.network.state_dict(), buffer)

            def run(content: bytes):
                made.network.load_state_dict(torch.load(io.BytesIO(content)))
                return lambda batch: [made.network(batch)]

            return plugins.Payload(
                content=buffer.getvalue(),
                run=run,
                watched=run(buffer.getvalue()),
                neurons=(),
                sizes=(),
            )

    shown = torch.rand(4, 1, 8, 8)
    made = export(model, tmp_path / "net", format="state", example_input=shown)
    assert made.format == "state" and made.agreement.predictions == 1.0
    assert (tmp_path / "net").is_file()
    with pytest.raises(ValueError, match="weights are not written as state; use the format onnx"):
        export(model, tmp_path / "two", format="state", example_input=shown, weight_bits=8)
    with pytest.raises(ValueError, match="unknown export format 'stat'; known: onnx"):
        export(model, tmp_path / "two", format="stat", example_input=shown)


def entry_point(name: str, value: str, package: str) -> EntryPoint:
    """An entry point as an installed package has it."""

    class Package:
        pass

    Package.name = package
    point = EntryPoint(name=name, value=value, group="tests.things")
    vars(point)["dist"] = Package()
    return point


@pytest.mark.parametrize(
    ("points", "asked", "phrase"),
    [
        ([("a", "math:tau", "one")], "a", "'a' is claimed by primesvt and by one"),
        ([("x", "m:x", "one"), ("x", "n:x", "two")], "x", "'x' is claimed by one and by two"),
        ([("x", "no_such_module:x", "one")], "x", "'x' cannot be loaded from one .*no_such_module"),
        ([("x", "math:no_such", "one")], "x", "'x' cannot be loaded from one .*no_such"),
    ],
)
def test_faults_of_other_packages_are_told_as_theirs(monkeypatch, points, asked, phrase) -> None:
    found = [entry_point(*each) for each in points]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    registry = Registry("thing", group="tests.things", builtin={"a": "math:pi"})
    with pytest.raises(ValueError, match=phrase):
        registry.find(asked)


def test_what_a_class_leaves_out_is_named(registries, monkeypatch, model, digits, tmp_path) -> None:
    monkeypatch.setattr(EXPORT_FORMATS, "_registered", dict(EXPORT_FORMATS._registered))
    plugins.policy("idle")(type("Idle", (Policy,), {}))
    with pytest.raises(ValueError, match=r"policy 'idle' .*Idle\) must implement search"):
        prune(model, data=digits, policy="idle")
    plugins.export_format("idle")(type("Idle", (plugins.FileFormat,), {}))
    with pytest.raises(ValueError, match=r"format 'idle' .*Idle\) must implement payload"):
        export(model, tmp_path / "a", format="idle", example_input=torch.rand(2, 1, 8, 8))
    plugins.recovery("function")(lambda: None)
    with pytest.raises(ValueError, match=r"recovery 'function' is .*primesvt.plugins.Recovery"):
        prune(model, data=digits, recovery="function")

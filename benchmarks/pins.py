"""That a change of the code changes no result: an earlier commit and this tree, run side by side.

    python benchmarks/pins.py [--record FOLDER] [--before FOLDER] [--only RUN ...] [--commit COMMIT]

Seven short pruning runs of the bundled digits model cover every policy, with and without recovery,
a score in Python, a run that is killed and goes on, and two processes. Each is done by the commit,
in a git worktree made for it, and by the tree at hand, with this interpreter on this machine. Then
recipe, probes, plan, figures and weights are compared, the weights bit for bit; only the seconds
that a probe took may differ. The exit code is 1 where anything differs that ``EXPECTED`` does not
name. Help texts and report pages may differ: they are recorded, and how many lines changed is said.

``--record FOLDER`` keeps them and the recipes of both, and ``changes.diff`` between them.
``--before FOLDER`` keeps the runs of the commit for the next call, which then takes half the time.

Both are called through the command line and public names alone, so files and classes may move.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from machine import machine
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "926efc5"

# Differences that a change is meant to make: a glob over RUN/FILE/PLACE as the table writes it, and
# why.
_PRIME = "the options of prime belong to it, under policy_options"
EXPECTED: Mapping[str, str] = {
    "score/recipe.yaml/*": "a recipe has one form, whether it was written in Python or not",
    "*/recipe.yaml/method.reading": _PRIME,
    "*/recipe.yaml/method.target_threshold": _PRIME,
    "*/recipe.yaml/method.full_curves": _PRIME,
    "*/recipe.yaml/method.policy_options": _PRIME,
    "*/recipe.yaml/run.device": "the device is where the model is, unless it is given",
}

FILES = (
    "recipe.yaml",
    "sensitivity.jsonl",
    "plan.json",
    "metrics.json",
    "model/config.json",
    "model/model.safetensors",
)
MADE = ("commit", "machine", "runs")  # what made.json says of a folder of runs
NOT_REPEATED = "seconds"  # what a probe took; the runs ask for no other times

DIGITS = ("sdt_v2_digits", "--data", "digits", "--batch-size", "450")
SCORE = """
import sys
import primesvt, torch
from sklearn.datasets import load_digits

digits = load_digits()
images = torch.tensor(digits.images[:300, None] / 16, dtype=torch.float32)
labels = torch.tensor(digits.target[:300])

def score(model):
    with torch.no_grad():
        return model(images).argmax(1) == labels

primesvt.prune(
    primesvt.create_model("sdt_v2_digits", pretrained=True),
    score=score,
    constraints=primesvt.Constraints(max_accuracy_drop=0.02, min_memory_saving=None),
    exclude=["*.block4_0.attn.*"],
    policy="random",
    importance="firing_rate",
    recovery="bn",
    rates=[0.2, 0.4, 0.6, 0.8, 0.9],
    verify=False,
    out=sys.argv[1],
)
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pruning run: what follows ``primesvt prune MODEL``, or a script; and how it is started.

    ``killed_after`` lines of ``sensitivity.jsonl`` the run is killed, and the same command goes on.
    """

    flags: str = ""
    script: str = ""
    processes: int = 1
    killed_after: int | None = None

    def command(self, name: str) -> list[str]:
        """The words that start it, in a folder in which it writes the run folder ``name``."""
        if self.script:
            return [sys.executable, "-c", self.script, name]
        launch = ["-m", "primesvt", "prune", *DIGITS, *self.flags.split(), "--out", name]
        if self.processes > 1:
            several = ["--standalone", "--nproc-per-node", str(self.processes)]
            launch = ["-m", "torch.distributed.run", *several, *launch]
        return [sys.executable, *launch]


RUNS: Mapping[str, Run] = {
    "paper": Run(flags="--preset paper --rates 0.2 0.4 0.6 0.8 --include *.block4_0.* *.conv2a.*"),
    "prime": Run(  # one rate is rejected early, on a part of the images
        flags="--policy prime --no-verify --max-accuracy-drop 2 --race-error 0.2 --batch-size 90"
        " --rates 0.3 0.6 0.9 0.97 --include *.block3_0.* *.conv1b.*",
        killed_after=5,
    ),
    "psvit": Run(
        flags="--policy psvit --no-verify --importance activity --recovery bn --gate point"
        " --max-accuracy-drop 2 --rates 0.2 0.4 0.6 0.8 --include *.block4_0.* *.conv1b.*"
    ),
    "uniform": Run(
        flags="--policy uniform --importance l1 --recovery none --no-lossless --include-streams"
        " --channel-multiple 4 --max-accuracy-drop 10 --rates 0.1 0.2 0.3 0.4"
    ),
    "score": Run(script=SCORE),
    "global": Run(  # a limit so loose that images confirm the plan, and a saving out of reach
        flags="--policy global --no-verify --importance taylor --max-accuracy-drop 20"
        " --min-memory-saving 0.95 --rates 0.3 0.5 0.7 0.8 0.9 0.95"
    ),
    "allocate": Run(
        flags="--max-accuracy-drop 1 --max-membrane 105kB --rates 0.4 0.8"
        " --include *.block4_0.attn.* *.conv2a.conv1",
        processes=2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two trees that are compared, and the folder that its runs are written to."""

    tree: Path
    folder: Path

    def environment(self) -> dict[str, str]:
        """This process's, with the tree's package, one thread and a terminal of fixed width."""
        fixed = {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
        return os.environ | fixed | {"PYTHONPATH": str(self.tree / "src")}

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder, with the package of the tree."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True
        )

    def begin(self) -> None:
        """Make the folder, and see that it is this tree's package that runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        there = self.call([sys.executable, "-c", "import primesvt; print(primesvt.__file__)"])
        if not there.stdout.startswith(str(self.tree / "src")):
            raise ValueError(
                f"the package of {self.tree} is not what runs: {there.stdout or there.stderr}"
            )

    def prune(self, name: str, run: Run) -> float:
        """Do a run; the seconds that it took. Limits that are not met (code 3) are a result."""
        began, command = time.perf_counter(), run.command(name)
        if run.killed_after is not None:
            self._kill(command, self.folder / name / "sensitivity.jsonl", run.killed_after)
        done = self.call(command)
        if not (self.folder / name / "metrics.json").is_file():
            raise ValueError(f"{name} of {self.tree} failed: {done.stdout}{done.stderr[-4000:]}")
        (self.folder / name / "code").write_text(str(done.returncode))
        return time.perf_counter() - began

    def _kill(self, command: Sequence[str], probes: Path, lines: int) -> None:
        """Start a run and kill it; later lines go, as the moment of a kill is not repeated."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment(), **quiet)
        try:
            while process.poll() is None and _lines(probes) <= lines:
                time.sleep(0.02)
            if process.poll() is not None:
                raise ValueError(f"{probes.parent} ended before {lines} lines; kill it earlier")
        finally:
            process.kill()
            process.wait()
        probes.write_bytes(b"".join(probes.read_bytes().splitlines(keepends=True)[:lines]))

    def texts(self, names: Sequence[str]) -> dict[str, str]:
        """Help texts, recipes and the visible text of report pages, by file name."""
        place = self.folder / "help.json"
        if not place.is_file():
            place.write_text(json.dumps(self._help(), indent=1))
        found = {f"help/{name}.txt": text for name, text in json.loads(place.read_text()).items()}
        for name in names:
            recipe, page = self.folder / name / "recipe.yaml", self.folder / name / "report.html"
            found[f"{name}/recipe.yaml"] = recipe.read_text(encoding="utf-8")
            found[f"{name}/report.txt"] = visible(page.read_text(encoding="utf-8"))
        return found

    def _help(self) -> dict[str, str]:
        program = [sys.executable, "-m", "primesvt"]
        top = self.call([*program, "--help"]).stdout
        listed = re.search(r"\{([\w,-]+)\}", top)
        if listed is None:
            raise ValueError(f"primesvt --help of {self.tree} lists no commands: {top}")
        commands = {name: [*program, name, "--help"] for name in listed[1].split(",")}
        return {"primesvt": top} | {name: self.call(c).stdout for name, c in commands.items()}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class _Visible(HTMLParser):
    """Collects the pieces of text of a page, those of pictures too, but no style sheet."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.pieces = 0, list[str]()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text and not self.hidden:
            self.pieces.append(text)


def visible(page: str) -> str:
    """What a reader of an HTML page sees, one piece of text per line."""
    parser = _Visible()
    parser.feed(page)
    return "\n".join([*parser.pieces, ""])


def content(path: Path) -> Any:
    """A file of a run as plain values; of weights their names, types, shapes and digests."""
    if path.suffix == ".safetensors":
        return _weights(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return yaml.safe_load(text)
    if path.suffix == ".jsonl":
        return [_repeated(json.loads(line)) for line in text.splitlines()]
    return json.loads(text)


def _repeated(probe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in probe.items() if name != NOT_REPEATED}


def _weights(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told: dict[str, Any] = {"metadata": file.metadata()}
    for name, array in arrays.items():
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        told[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}
    return told


def differences(before: Any, after: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every place in which two plain values differ, and what stands there.

    Example:
        >>> list(differences({"kept": [1, 2], "drop": 0.0}, {"kept": [1, 3], "drop": 0.0}))
        [('kept.1', '2 before, 3 now')]
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            pair = [side.get(name, ABSENT) for side in (before, after)]
            yield from differences(*pair, f"{place}.{name}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list):
        for i, pair in enumerate(zip(before, after, strict=False)):
            yield from differences(*pair, f"{place}.{i}".lstrip("."))
        if len(before) != len(after):
            yield place, f"{_short(before)} before, {_short(after)} now"
    elif repr(before) != repr(after):  # to the last bit, and 1 is not 1.0
        yield place, f"{_short(before)} before, {_short(after)} now"


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def _short(value: Any) -> str:
    text = f"{len(value)} entries" if isinstance(value, dict | list) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def compare(name: str, before: Path, after: Path) -> Iterator[tuple[str, str, bool]]:
    """Of a run: what was compared, the first difference, and whether it is one too many."""
    codes = [(folder / name / "code").read_text() for folder in (before, after)]
    found = {"exit code": list(differences(*codes))}
    for file in FILES:
        found[file] = list(differences(*(content(side / name / file) for side in (before, after))))
    for what, places in found.items():
        wrong, meant = [], Counter[str]()
        for place, told in places:
            reason = expected(f"{name}/{what}/{place}")
            if reason is None:
                wrong.append(f"{place}: {told}" if place else told)
            else:
                meant[reason] += 1
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        told = [f"{wrong[0]}{more}"] if wrong else []
        told += [f"expected in {count}: {reason}" for reason, count in meant.items()]
        yield what, "; ".join(told) or "same", bool(wrong)


def expected(place: str) -> str | None:
    """Why a difference is meant, if it is."""
    return next((why for glob, why in EXPECTED.items() if fnmatch(place, glob)), None)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """Unified differences of texts, by file name; only of those that changed."""
    found = {}
    for name in dict.fromkeys([*before, *after]):
        pair = [side.get(name, "").splitlines() for side in (before, after)]
        lines = difflib.unified_diff(*pair, f"before/{name}", f"after/{name}", lineterm="")
        if changed := list(lines):
            found[name] = changed
    return found


def record(folder: Path, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Keep the texts of both trees, and what changed from one to the other."""
    for side, texts in (("before", before), ("after", after)):
        for name, text in texts.items():
            path = folder / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    lines = [line for changed in changes(before, after).values() for line in changed]
    (folder / "changes.diff").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@contextmanager
def worktree(commit: str, place: Path) -> Iterator[Path]:
    """The files of a commit in a folder that git removes again."""
    git = ["git", "-C", str(ROOT), "worktree"]
    made = subprocess.run(
        [*git, "add", "--detach", str(place), commit], capture_output=True, text=True
    )
    if made.returncode:
        raise ValueError(f"git has no commit {commit!r} here: {made.stderr.strip()}; fetch it")
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def known(folder: Path, commit: str, names: Sequence[str]) -> bool:
    """The runs of the commit lie in the folder, made here by the same commands."""
    path, asked = folder / "made.json", {name: repr(RUNS[name]) for name in names}
    if not folder.exists():
        return False
    made = json.loads(path.read_text()) if path.is_file() else {name: {} for name in MADE}
    same = (made["commit"], made["machine"]) == (commit, machine())
    if not same or made["runs"] != made["runs"] | asked:
        raise ValueError(
            f"{folder} does not hold these runs of {commit}, finished on this machine; "
            "delete it, or name a new folder"
        )
    return True


def side_by_side(asked: argparse.Namespace, folder: Path) -> bool:
    """Run and compare all that was asked for; print the table; whether nothing differs."""
    place, fine = asked.before or folder / "before", True
    there = known(place, asked.commit, asked.only)
    with worktree(asked.commit, folder / "tree") as tree:
        before = Side(tree=tree, folder=place.resolve())
        after = Side(tree=ROOT, folder=folder / "after")
        for side in (before, after):
            side.begin()
        print(f"{'run':9} {'what':24} {asked.commit} and this tree")
        for name in asked.only:
            seconds = [0.0 if there else before.prune(name, RUNS[name])]
            seconds.append(after.prune(name, RUNS[name]))
            for what, told, wrong in compare(name, before.folder, after.folder):
                print(f"{name:9} {what:24} {'DIFFERENT: ' if wrong else ''}{told}", flush=True)
                fine = fine and not wrong
            print(f"{name:9} {'seconds':24} {seconds[0]:.0f} and {seconds[1]:.0f}", flush=True)
        texts = before.texts(asked.only), after.texts(asked.only)
    if not there:
        made = (asked.commit, machine(), {name: repr(RUNS[name]) for name in asked.only})
        (place / "made.json").write_text(json.dumps(dict(zip(MADE, made, strict=True)), indent=1))
    report(asked.record, *texts)
    return fine


def report(folder: Path | None, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Say which texts changed, and record both where that was asked for."""
    changed = changes(before, after)
    for name, lines in changed.items():
        signs = Counter(line[0] for line in lines[2:])
        print(f"text      {name:24} +{signs['+']} -{signs['-']} lines")
    print(f"text      {len(before.keys() | after.keys()) - len(changed)} others are the same")
    if folder is not None:
        record(folder, before, after)
        print(f"recorded in {folder}")


def main() -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="keep texts, and their diff")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="keep the commit's runs")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS, metavar="RUN")
    parser.add_argument("--commit", default=COMMIT, help=f"what to compare with ({COMMIT})")
    asked, began = parser.parse_args(), time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="pins") as folder:
            fine = side_by_side(asked, Path(folder).resolve())
    except ValueError as error:
        sys.exit(f"error: {error}")
    seconds = time.perf_counter() - began
    print(f"{'No result differs' if fine else 'RESULTS DIFFER'} ({seconds:.0f} s)")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

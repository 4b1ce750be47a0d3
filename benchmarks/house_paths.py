"""How many files and functions of the package one ``prune()`` and one measured probe run through.

    python benchmarks/house_paths.py [TREE ...]      # the tree at hand when none is given

A tree is a checkout of this repository, such as one made by ``git worktree add``. Each is run in a
process of its own: the bundled digits network, policy ``prime``, recovery ``refit``. A probe is
what runs between the ends of two probes of single layers. Files of ``models/`` are counted
apart: which of them run depends on the network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent


def counted(tree: Path) -> dict[str, Any]:
    """Run the child in the tree and read its counts."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        env=os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


CHILD = """
import json, sys
from pathlib import Path
import primesvt

ROOT = str(Path(primesvt.__file__).parent) + "/"
everything, probe, now = set(), set(), [None]
ends = []

def profile(frame, event, arg):
    function = frame.f_code.co_flags & 1  # neither a module's nor a class's body
    if event == "call" and function and frame.f_code.co_filename.startswith(ROOT):
        place = (frame.f_code.co_filename[len(ROOT):], frame.f_code.co_qualname)
        everything.add(place)
        if len(ends) == 2:
            probe.add(place)

def progress(stage, done, total):
    if stage == "probing" and done > len(ends):
        ends.append(done)

# Earlier trees had this option of prime among those of all policies.
FULL = {"full_curves": True}
if hasattr(primesvt, "PruneConfig"):
    FULL = {"policy_options": FULL}
model = primesvt.create_model("sdt_v2_digits", pretrained=True)
sys.setprofile(profile)
primesvt.prune(
    model, data="digits", policy="prime", batch_size=450, progress=progress,
    include=["*.mlp.fc1"], rates=[0.2, 0.4, 0.6], **FULL,
)
sys.setprofile(None)

def counts(places):
    outside = {p for p in places if not p[0].startswith("models/")}
    return {
        "files": len({f for f, _ in places}),
        "files outside models": len({f for f, _ in outside}),
        "functions": len({p for p in places if "<" not in p[1].rpartition(".")[2]}),
    }

print(json.dumps({"prune": counts(everything), "probe": counts(probe), "ends": len(ends)}))
"""


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(__doc__)
    for tree in [Path(word).resolve() for word in sys.argv[1:]] or [HERE]:
        found = counted(tree)
        for what in ("prune", "probe"):
            shown = ", ".join(f"{count} {name}" for name, count in found[what].items())
            print(f"{tree.name}: one {what}: {shown}")


if __name__ == "__main__":
    main()

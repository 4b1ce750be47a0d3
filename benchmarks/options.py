"""Every option of a pruning run, and the places of the package that state it.

    python benchmarks/options.py

A place states an option where a class or a function of the package gives the name a type or a
default. Each option is a field of one class in ``config.py`` and a line of ``PruneOptions``, which is
held equal to it by a test; other places are listed with their files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from primesvt.config import SECTIONS

SOURCE = Path(__file__).resolve().parent.parent / "src" / "primesvt"
ROOMS = ("config.py", "pruning", "cli/prune.py", "importance", "recovery", "__init__.py")


def stated(file: Path) -> Iterator[tuple[str, str]]:
    """Names with a type or a default that classes and functions of a file state, with the owner."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id, node.name
        elif isinstance(node, ast.FunctionDef):
            both = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            yield from ((argument.arg, f"{node.name}()") for argument, given in both if given)


def places() -> dict[str, list[str]]:
    """Option -> the places that state it with a default of its own, or a type."""
    found: dict[str, list[str]] = {
        name: [] for kind in SECTIONS.values() for name in kind.model_fields
    }
    for room in ROOMS:
        path = SOURCE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for name, owner in stated(file):
                if name in found:
                    found[name].append(f"{file.relative_to(SOURCE)}:{owner}")
    return found


if __name__ == "__main__":
    rows = places()
    for name, where in rows.items():
        print(f"{name:22}", ", ".join(where))
    print(f"{len(rows)} options, stated in {sum(map(len, rows.values()))} places")

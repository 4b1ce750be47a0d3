"""Every option of a pruning run, and the places of the package that state it.

    python benchmarks/options.py

A place states an option where a class or a function of the package gives the name a default of its
own. Each option is a field of one class in ``config.py``; ``PruneOptions`` there lists the same
names and types for editors and type checkers, without defaults, and a test holds both equal.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from primesvt.config import SECTIONS

SOURCE = Path(__file__).resolve().parent.parent / "src" / "primesvt"
ROOMS = ("config.py", "pruning", "cli/prune.py", "importance", "recovery", "__init__.py")


def stated(file: Path) -> Iterator[tuple[str, str]]:
    """Names that classes and functions of a file give a default, with the owner."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                named = isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                if named and not _nothing(line.value):
                    yield line.target.id, node.name
        elif isinstance(node, ast.FunctionDef):
            both = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            for argument, given in both:
                if not _nothing(given):
                    yield argument.arg, f"{node.name}()"


def _nothing(default: ast.expr | None) -> bool:
    """No default, one that stands for nothing, or the config's."""
    if default is None or (isinstance(default, ast.Constant) and default.value is None):
        return True
    return "model_fields" in ast.unparse(default)


def places() -> dict[str, list[str]]:
    """Option -> the places that give it a default of their own."""
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
    print(f"{len(rows)} options with {sum(map(len, rows.values()))} defaults (None is not counted)")

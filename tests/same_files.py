"""Compare files of two runs, so that a difference is told at once and in a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors.torch import load

SHOWN = 5  # differences named at most


def assert_same_files(one: Path, other: Path, names: Iterable[str]) -> None:
    """Every named file holds the same bytes in both folders.

    What differs is named: tensors and by how much, or lines. An ``assert`` on the bytes themselves
    would let pytest look for their smallest difference, which takes minutes where they are many.
    """
    for name in names:
        here, there = (one / name).read_bytes(), (other / name).read_bytes()
        if here != there:
            compare = tensors_that_differ if name.endswith(".safetensors") else lines_that_differ
            raise AssertionError(f"{name} is not the same: {compare(here, there)}")


def tensors_that_differ(one: bytes, other: bytes) -> str:
    """Names of tensors whose values differ, the largest difference of each, and how many.

    Example:
        >>> from safetensors.torch import save
        >>> one, other = {"a": torch.ones(2), "b": torch.ones(1)}, {"a": torch.zeros(2)}
        >>> tensors_that_differ(save(one), save(other))
        'a by 1, b in one only (2 of 2 tensors)'
    """
    here, there = load(one), load(other)
    found = []
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            found.append(f"{name} in one only")
        elif here[name].shape != there[name].shape or here[name].dtype != there[name].dtype:
            found.append(f"{name} of another shape or type")
        elif not torch.equal(here[name], there[name]):
            gap = (here[name].double() - there[name].double()).abs().max().item()
            found.append(f"{name} by {gap:.3g}")
    if not found:
        return "all tensors are, but not what lies around them"
    more = ", ..." if len(found) > SHOWN else ""
    return f"{', '.join(found[:SHOWN])}{more} ({len(found)} of {len(here | there)} tensors)"


def lines_that_differ(one: bytes, other: bytes) -> str:
    """The first lines that differ, cut where they are long.

    Example:
        >>> lines_that_differ(b"a\\nb", b"a\\nc")
        'line 2: b | c'
    """
    pairs = zip_longest(one.decode().splitlines(), other.decode().splitlines(), fillvalue="")
    found = [
        f"line {number}: {here[:200]} | {there[:200]}"
        for number, (here, there) in enumerate(pairs, start=1)
        if here != there
    ]
    return "; ".join(found[:SHOWN]) or "line ends"

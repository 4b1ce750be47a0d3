"""Which channel groups every published variant has, and what share of its parameters each holds.

    python benchmarks/families.py            # writes docs/families.md, about three minutes

Each model is built and traced on the meta device at its own input size: no weights, no data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

import primesvt
from primesvt.channels import ChannelGraph, ChannelGroup, trace
from primesvt.models import ModelEntry, create_model, list_models, model_entry
from primesvt.models.families import FAMILIES

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

# Names are alike in every family, so the first pattern that a group's name holds tells its role.
ROLES = (
    (r"\.attn\.[a-z]+:inner$", "RepConv inner"),
    (r"\.attn\.(?P<part>[a-z+]+)$", "attention {part}"),
    (r"\.mlp\.", "MLP hidden"),
    (r"\.sep\d*\.|\.local\.", "SepConv hidden"),
    (r"\.rep\w*[.:]|\.rep\w*$", "RepConv inner"),
    (r"^blocks\.conv\w+\.conv1$", "conv block hidden"),
    (r"^blocks\.(stem|down)", "stem, downsampling"),
)
STREAM, FROZEN, CLASSES, NONE = "stream", "frozen", "classes", "in no group"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant: shares are fractions of all parameters, and those of the roles add up to one."""

    entry: ModelEntry
    parameters: int
    groups: int
    shares: dict[str, float]
    reach: float
    reach_with_streams: float
    examples: dict[str, str]


def role(group: ChannelGroup) -> str:
    """What a group is in a transformer."""
    if group.status != "free":
        return CLASSES if group.status == "protected" else FROZEN
    if group.kind == "stream":
        return STREAM
    for pattern, title in ROLES:
        if found := re.search(pattern, group.name):
            return title.format(**found.groupdict())
    raise ValueError(f"no role for group {group.name!r}; add a pattern to ROLES")


def written(graph: ChannelGraph, group: ChannelGroup, parameters: dict[str, int]) -> float:
    """Parameters of the layers and norms that make the group's channels."""
    total = 0.0
    for member in group.members:
        if member.axis == 0 and member.tensor in parameters:
            ids = graph.ids(group, member)
            total += parameters[member.tensor] * float((ids >= 0).mean())
    return total


def touched(graph: ChannelGraph, groups: list[ChannelGroup], parameters: dict[str, int]) -> int:
    """Parameters with some axis in one of the groups."""
    names = {member.tensor for group in groups for member in group.members}
    return sum(count for name, count in parameters.items() if name in names)


@cache
def measure(name: str) -> Row:
    """Trace one variant."""
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name, time_steps=1)
        image = torch.empty(1, *([1] if entry.data.events else []), *entry.data.input_size)
    graph = trace(model, image)
    parameters = {n: p.numel() for n, p in model.named_parameters()}
    total = sum(parameters.values())
    groups = [group for group in graph if group.kind != "heads"]
    shares: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for group in groups:
        shares[role(group)] += written(graph, group, parameters) / total  # type: ignore[assignment]
        examples.setdefault(role(group), str(group))
    shares[NONE] = 1 - sum(shares.values())  # type: ignore[assignment]
    free = [group for group in groups if group.status == "free"]
    return Row(
        entry=entry,
        parameters=total,
        groups=len(graph.prunable()),
        shares=dict(shares),
        reach=graph.touched() / total,
        reach_with_streams=touched(graph, free, parameters) / total,
        examples=examples,
    )


def variants(family: str) -> list[str]:
    """The registered names of a family, our own small models last."""
    return [name for name in list_models() if model_entry(name).family == family]


def columns(rows: list[Row]) -> list[str]:
    """The roles that hold parameters, in forward order, the bound ones last."""
    last = (STREAM, FROZEN, CLASSES, NONE)
    found = [name for row in rows for name, share in row.shares.items() if share > 5e-5]
    ordered = [name for name in dict.fromkeys(found) if name not in last]
    return [*ordered, *(name for name in last if name in found)]


def line(row: Row, roles: list[str]) -> str:
    """One row of a family's table."""
    top1 = row.entry.published
    cells = [
        f"`{row.entry.name}`",
        f"{row.parameters:,}",
        f"{top1.top1:.2f} (T {top1.time_steps})" if top1 else "",
        str(row.groups),
        *(f"{row.shares[r]:.1%}" if row.shares.get(r, 0) > 5e-5 else "" for r in roles),
        f"{row.reach:.1%}",
        f"{row.reach_with_streams:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def header(roles: list[str]) -> str:
    names = ["model", "parameters", "published top-1 %", "groups", *roles]
    names += ["in reach", "with streams"]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def section(family: str) -> Iterator[str]:
    """A family's part of the page."""
    rows = [measure(name) for name in variants(family)]
    roles = columns(rows)
    yield f"\n## {FAMILIES[family].title} (`{family}`)\n"
    yield header(roles)
    yield from (line(row, roles) for row in rows)
    examples: dict[str, str] = {}
    for row in rows:
        for name, text in row.examples.items():
            examples.setdefault(name, f"{text} (`{row.entry.name}`)")
    yield "\nOne group of each kind, as `primesvt inspect` prints it:\n"
    yield from (f"- {name}: {examples[name]}" for name in roles if name in examples)
    oddities = [text for row in rows for text in FAMILIES[family].oddities(row.entry.config)]
    if oddities:
        yield "\nOddities of the official code that are reproduced:\n"
        yield from (f"- {text}" for text in dict.fromkeys(oddities))


def introduction() -> str:
    made_with = f"primesvt {primesvt.__version__}, torch {version('torch')}"
    return f"""# Families

Written by `python benchmarks/families.py` ({made_with}) from traces on the meta device; not edited
by hand. `primesvt inspect NAME` lists the groups of one model.

A **group** is a set of channels that must be removed together. Its share is that of the layers and
norms which *make* its channels, so the shares of one model add up to 100 %. **groups** counts those
that may be pruned on their own. **in reach** is the share of parameters that some of them touches,
by rows or by columns; **with streams** counts the residual streams too, which are pruned only on
request. *Classes* (the last layer) are never pruned; *frozen* groups have no exact removal; *in no
group* are scalars and parameters that the official code keeps and never uses."""


def page() -> str:
    parts = [introduction()]
    for family in FAMILIES:
        parts += section(family)
    return "\n".join(parts) + "\n"


def main() -> None:
    PAGE.write_text(page())
    print(f"written to {PAGE.relative_to(PAGE.parent.parent)}")


if __name__ == "__main__":
    main()

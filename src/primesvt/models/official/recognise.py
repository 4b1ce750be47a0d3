"""An official state dict as one family reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from primesvt.models.config import ModelConfig
from primesvt.models.entry import ModelEntry
from primesvt.models.families import Family
from primesvt.models.nearest import agrees, nearest_entry
from primesvt.models.official.names import official_shapes
from primesvt.models.official.report import Loaded
from primesvt.models.overrides import checked
from primesvt.models.state_dict import Differences, differences

__all__ = ["Interpretation", "interpret"]

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Interpretation:
    """The config that a family finds in a state dict, and that state dict in present spelling."""

    config: ModelConfig
    state: State
    entry: ModelEntry
    loaded: Loaded

    @cached_property
    def misfit(self) -> Differences:
        """In what the tensors differ from those of a model of this config."""
        return differences(official_shapes(self.config), self.state)


def interpret(family: Family, state: State, overrides: Mapping[str, Any]) -> Interpretation:
    """Settle a config: from the tensors, then the person, then the nearest registered variant.

    Raises ``KeyError`` with the name of a tensor without which the family can infer nothing, and
    ``ValueError`` for an override that the tensors contradict or a config that cannot be.

    Example:
        >>> from primesvt.models import create_model, to_official
        >>> from primesvt.models.families import FAMILIES
        >>> state = to_official(create_model("sdt_v2_digits"))
        >>> interpret(FAMILIES["sdt_v2"], state, {"tau": 1.5}).config.strides
        (1, 1, 2, 1, 1)
    """
    present = family.modernise(state)
    inferred = family.infer(present)
    entry = nearest_entry(family.entries(), inferred, given=overrides)
    exact = _is_exact(entry, inferred)
    defaults = _defaults(entry, exact=exact)
    given = checked(family, overrides, inferred=inferred, defaults=defaults)
    assumed = {k: v for k, v in defaults.items() if k not in inferred and k not in given}
    config, notes = _config(family, inferred | given, assumed, entry)
    loaded = Loaded(
        source="a state dict",
        family=config.family,
        title=family.title,
        nearest=entry.name,
        exact=exact,
        inferred=inferred,
        given=given,
        assumed={name: getattr(config, name) for name in assumed},
        notes=(*_twins(family, entry, inferred), *notes, *family.oddities(config)),
    )
    return Interpretation(config=config, state=present, entry=entry, loaded=loaded)


def _is_exact(entry: ModelEntry, inferred: Mapping[str, Any]) -> bool:
    return all(agrees(getattr(entry.config, name), value) for name, value in inferred.items())


def _twins(family: Family, entry: ModelEntry, inferred: Mapping[str, Any]) -> Iterator[str]:
    """Other variants with the same tensors, if the entry's own are these."""
    own = entry.config.to_dict()
    for other in family.entries():
        if other.name == entry.name or not (_is_exact(entry, inferred) and other.official):
            continue
        if _is_exact(other, inferred):
            apart = {k: v for k, v in other.config.to_dict().items() if v != own[k]}
            told = ", ".join(f"{name}={value}" for name, value in apart.items())
            yield f"{other.name} has the same tensors; for it give {told}"


def _defaults(entry: ModelEntry, *, exact: bool) -> dict[str, Any]:
    """The variant's settings, but for those that do not carry over to another network."""
    values = {f.name: getattr(entry.config, f.name) for f in fields(entry.config)}
    if "img_size" in values:
        values["img_size"] = None
    if "spike_levels" in values and not exact:
        # Eight levels belong to the weights of the published sizes, not to the design.
        values["spike_levels"] = type(entry.config)().spike_levels  # type: ignore[attr-defined]
    return values


def _config(
    family: Family, fixed: Mapping[str, Any], assumed: Mapping[str, Any], entry: ModelEntry
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config; with fewer heads where those of the variant do not divide the widths."""
    try:
        return family.config.from_dict({**assumed, **fixed}), ()
    except ValueError as error:
        for heads in _fewer(assumed.get("num_heads")):
            try:
                config = family.config.from_dict({**assumed, **fixed, "num_heads": heads})
            except ValueError:
                continue
            return config, (
                f"the {assumed['num_heads']} heads of {entry.name} do not divide the widths, so"
                f" num_heads={heads} is assumed; give num_heads if it is another",
            )
        raise ValueError(f"{family.title}: {error}") from error


def _fewer(heads: object) -> Iterator[int]:
    return iter(range(heads - 1, 0, -1)) if isinstance(heads, int) else iter(())

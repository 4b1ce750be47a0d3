"""Recognise the family of an official state dict, and infer its settings from the tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from primesvt.models.config import ModelConfig
from primesvt.models.entry import ModelEntry
from primesvt.models.families import FAMILIES, Family, family_of
from primesvt.models.nearest import agrees, nearest_entry
from primesvt.models.official.names import official_shapes
from primesvt.models.provenance import CheckpointReport
from primesvt.models.state_dict import Differences, differences

__all__ = [
    "SETTINGS",
    "Interpretation",
    "check_names",
    "checked",
    "guesses",
    "interpret",
    "recognise",
]

State = Mapping[str, Tensor]


SETTINGS = (
    "time_steps",
    "num_heads",
    "pooling_stat",
    "dvs_mode",
    "spike_mode",
    "img_size",
    "group_size",
    "spike_levels",
    "tau",
)


# Those with values that can be tried on data; predictions depend on each of them.
TRIABLE = (
    "pooling_stat",
    "strides",
    "time_steps",
    "num_heads",
    "dvs_mode",
    "proj_neuron",
    "spike_levels",
    "tau",
    "attn_scale",
)


def guesses(loaded: CheckpointReport) -> tuple[str, ...]:
    """The settings of a report that were assumed, and of which other values can be tried.

    Example:
        >>> from primesvt.models import create_model, from_official, to_official
        >>> guesses(from_official(to_official(create_model("sdt_v2_digits")), time_steps=2).loaded)
        ('strides', 'num_heads', 'tau', 'attn_scale')
    """
    # The neurons of integer levels have no time axis.
    still = loaded.family.startswith("sdt_v3")
    names = [name for name in TRIABLE if name in loaded.assumed]
    return tuple(name for name in names if not (still and name == "time_steps"))


def check_names(names: Iterable[str]) -> None:
    """Raise ``TypeError`` unless every name is a setting of some family.

    Example:
        >>> check_names(["time_steps", "tau"])
        >>> check_names(["heads"])
        Traceback (most recent call last):
        ...
        TypeError: unknown setting 'heads'; known: time_steps, num_heads, pooling_stat, ...
    """
    special = {name for family in FAMILIES.values() for name in _fields(family)} - set(SETTINGS)
    unknown = [name for name in names if name not in special | set(SETTINGS)]
    if unknown:
        raise TypeError(
            f"unknown setting {', '.join(map(repr, unknown))}; known: {', '.join(SETTINGS)}; "
            f"in some families also {', '.join(sorted(special))}"
        )


def checked(
    family: Family,
    overrides: Mapping[str, Any],
    *,
    inferred: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings a person gave, or raise ``ValueError`` for one that cannot be.

    ``defaults`` are the values without them, whose types the result takes: ``1111`` for a setting
    that is text becomes ``"1111"``.

    Example:
        >>> from primesvt.models.families import FAMILIES
        >>> checked(FAMILIES["sdt_v2"], {"tau": 3}, inferred={}, defaults={"tau": 2.0})
        {'tau': 3}
    """
    own, accepted = _fields(family), {}
    for name, value in overrides.items():
        if name not in own:
            raise ValueError(f"{family.title} has no setting {name!r}; it has: {', '.join(own)}")
        given = tuple(value) if isinstance(value, list) else value
        # Digits without quotes are a number in YAML.
        if isinstance(defaults.get(name), str) and type(value) is int:
            given = str(value)
        if name in inferred and not agrees(given, inferred[name]):
            raise ValueError(
                f"{name}={given!r} was given, but the tensors of the checkpoint say "
                f"{name}={inferred[name]!r}; leave it out"
            )
        accepted[name] = given
    return accepted


def _fields(family: Family) -> list[str]:
    return [field.name for field in fields(family.config)]


# Of another family, or no tensors at all.
NOT_ITS_OWN = (KeyError, AttributeError, IndexError)
_MOST_LENT = 100
_FOREIGN = 0.9  # of all names only one side has: another network, no spoilt file


def recognise(state: State, *, family: str | None, overrides: Mapping[str, Any]) -> Interpretation:
    """Find the one family that a state dict fits, and its settings.

    Raises ``TypeError`` for an unknown name in ``overrides``, and ``ValueError`` for a setting
    that the family does not have or the tensors contradict, and for tensors that fit no family:
    the nearest is named, with the first ten tensors missing, extra and of another shape.

    Example:
        >>> from primesvt.models import create_model, to_official
        >>> state = to_official(create_model("sdt_v2_digits"))
        >>> recognise(state, family=None, overrides={}).config.strides
        (1, 1, 2, 1, 1)
    """
    check_names(overrides)
    candidates = list(FAMILIES.values()) if family is None else [family_of(family)]
    if not state:
        raise ValueError("the state dict is empty; give the weights of a trained model")
    accepting = [each for each in candidates if _accepts(each, state)]
    if len(accepting) > 1:
        accepting = [each for each in accepting if not _misfit(each, state).count]
    if len(accepting) > 1:
        names = ", ".join(each.config.family for each in accepting)
        raise ValueError(f"the tensors fit several families ({names}); say which with family=")
    found = interpret(accepting[0], state, overrides) if accepting else None
    if found is None or found.misfit.count:
        raise _no_family(state, candidates)
    return found


def _accepts(family: Family, state: State) -> bool:
    try:
        family.infer(family.modernise(state))
    except NOT_ITS_OWN:
        return False
    return True


def _no_family(state: State, candidates: list[Family]) -> ValueError:
    """The error for tensors of no family: names the nearest one, and the tensors that differ."""
    misfits = [(each, _misfit(each, state)) for each in candidates]
    family, found = min(misfits, key=lambda pair: pair[1].share)
    own = all(key.startswith(("blocks.", "head.")) for key in state)
    own = own and any(key.startswith("blocks.") for key in state)
    if len(candidates) > 1 and not own and found.share > _FOREIGN:
        return ValueError(
            f"the {len(state)} tensors of the checkpoint fit no family of PrimeSVT (the nearest,"
            f" {family.config.family}, has {found.alike} of their names and shapes): prune such a"
            " network in Python, with primesvt.prune(your_module, data=...), or, if it is one of"
            " the families under other names, give their official names with --key-map FILE (in"
            " Python: primesvt.load(path, key_map=...))"
        )
    name, known = family.config.family, f"the {len(state)} tensors of the checkpoint"
    if own:
        known = f"{known} fit no official code, they have PrimeSVT's own names;"
    elif len(candidates) > 1:
        known = f"{known} fit no family;"
    else:
        return ValueError(f"{known} do not fit the family {name} ({family.title}): {found}")
    return ValueError(f"{known} nearest is {name} ({family.title}): {found}")


def _misfit(family: Family, state: State) -> Differences:
    """The tensors in which a state dict differs from a family's, at the nearest sizes.

    Tensors without which nothing can be inferred are taken from the family's own entries.
    """
    present = family.modernise(state)
    present = {**present, **_absent_counters(present)}
    shapes = [official_shapes(entry.config) for entry in _samples(family)]
    found = [differences(each, present) for each in shapes]
    lent = {key: value for key, value in present.items() if _plausible(value, key, shapes)}
    for _ in range(_MOST_LENT):
        try:
            config = interpret(family, lent, {}).config
        except KeyError as error:
            key = str(error.args[0])
            lender = next((each for each in shapes if key in each), None)
            if lender is None:
                break
            lent[key] = lender[key]
        except (AttributeError, IndexError, ValueError):
            break
        else:
            found.append(differences(official_shapes(config), present))
            break
    return min(found, key=lambda each: each.share)


def _plausible(value: object, key: str, shapes: Iterable[State]) -> bool:
    """Whether a tensor has as many axes as in some form of the family, if it is in any."""
    axes = {each[key].ndim for each in shapes if key in each}
    return isinstance(value, Tensor) and (not axes or value.ndim in axes)


def _samples(family: Family) -> Iterable[ModelEntry]:
    """One entry for every layout of the family, as layouts differ in the names of tensors."""
    forms: dict[Any, ModelEntry] = {}
    for entry in family.entries():
        own = entry.config.to_dict()
        form = (own.get("layout"), own["in_channels"], own.get("distillation"))
        forms.setdefault(form, entry)
    return forms.values()


@dataclass(frozen=True, kw_only=True)
class Interpretation:
    """The config that a family finds in a state dict, and that state dict in present spelling."""

    config: ModelConfig
    state: State
    entry: ModelEntry
    loaded: CheckpointReport

    @cached_property
    def misfit(self) -> Differences:
        """The tensors that differ from those of a model of this config."""
        return differences(official_shapes(self.config), self.state)


def interpret(family: Family, state: State, overrides: Mapping[str, Any]) -> Interpretation:
    """Find a config: from the tensors, then the user's settings, then the nearest variant.

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
    absent = _absent_counters(present)
    present = {**present, **absent}
    inferred = family.infer(present)
    entry = nearest_entry(family.entries(), inferred, given=overrides)
    exact = _is_exact(entry, inferred)
    defaults = _defaults(entry, exact=exact)
    given = checked(family, overrides, inferred=inferred, defaults=defaults)
    assumed = {k: v for k, v in defaults.items() if k not in inferred and k not in given}
    config, notes = _config(family, inferred | given, assumed, entry)
    loaded = CheckpointReport(
        source="a state dict",
        family=config.family,
        title=family.title,
        nearest=entry.name,
        exact=exact,
        inferred=inferred,
        given=given,
        assumed={name: getattr(config, name) for name in assumed},
        notes=(
            *_counter_note(absent),
            *_twins(family, entry, inferred),
            *notes,
            *family.oddities(config),
        ),
    )
    return Interpretation(config=config, state=present, entry=entry, loaded=loaded)


def _absent_counters(state: State) -> dict[str, Tensor]:
    """Make the ``num_batches_tracked`` that a file lacks, as zeros: evaluation never reads them."""
    names = (name.removesuffix("running_mean") for name in state if name.endswith("running_mean"))
    return {
        name: torch.zeros((), dtype=torch.int64)
        for name in (f"{each}num_batches_tracked" for each in names)
        if name not in state
    }


def _counter_note(absent: Mapping[str, Tensor]) -> tuple[str, ...]:
    if not absent:
        return ()
    many = len(absent) > 1
    return (
        f"{len(absent)} counter{'s' * many} num_batches_tracked {'are' if many else 'is'} not in"
        " the file, and 0 is taken, which changes no prediction",
    )


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
            settings = ", ".join(f"{name}={value}" for name, value in apart.items())
            yield f"{other.name} has the same tensors; for it give {settings}"


def _defaults(entry: ModelEntry, *, exact: bool) -> dict[str, Any]:
    """The settings of a registered variant, without those that only hold for its own weights."""
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
    """Build the config, with fewer heads where the variant's do not divide the widths."""
    try:
        return family.config.from_dict({**assumed, **fixed}), ()
    except ValueError as error:
        most = assumed.get("num_heads")
        for heads in range(most - 1, 0, -1) if isinstance(most, int) else ():
            try:
                config = family.config.from_dict({**assumed, **fixed, "num_heads": heads})
            except ValueError:
                continue
            return config, (
                f"the {assumed['num_heads']} heads of {entry.name} do not divide the widths, so"
                f" num_heads={heads} is assumed; give num_heads if it is another",
            )
        raise ValueError(f"{family.title}: {error}") from error

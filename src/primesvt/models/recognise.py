"""Which family an official state dict belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from primesvt.models.entry import ModelEntry
from primesvt.models.families import FAMILIES, Family, family_of
from primesvt.models.official.names import official_shapes
from primesvt.models.official.recognise import Interpretation, interpret
from primesvt.models.overrides import check_names
from primesvt.models.state_dict import Differences, differences

__all__ = ["recognise"]

State = Mapping[str, Tensor]
# Of another family, or no tensors at all.
NOT_ITS_OWN = (KeyError, AttributeError, IndexError)
_MOST_LENT = 100


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
    """What to tell: the nearest family, and in what the tensors differ from it."""
    misfits = [(each, _misfit(each, state)) for each in candidates]
    family, found = min(misfits, key=lambda pair: pair[1].share)
    name, known = family.config.family, f"the {len(state)} tensors of the checkpoint"
    if all(key.startswith(("blocks.", "head.")) for key in state) and "blocks." in "".join(state):
        known = f"{known} fit no official code, they have PrimeSVT's own names;"
    elif len(candidates) > 1:
        known = f"{known} fit no family;"
    else:
        return ValueError(f"{known} do not fit the family {name} ({family.title}): {found}")
    return ValueError(f"{known} nearest is {name} ({family.title}): {found}")


def _misfit(family: Family, state: State) -> Differences:
    """How far a family is from a state dict; tensors that it needs to infer anything are lent."""
    present = family.modernise(state)
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
    """One entry for every form of the family, as forms differ in the names of tensors."""
    forms: dict[Any, ModelEntry] = {}
    for entry in family.entries():
        own = entry.config.to_dict()
        form = (own.get("layout"), own["in_channels"], own.get("distillation"))
        forms.setdefault(form, entry)
    return forms.values()

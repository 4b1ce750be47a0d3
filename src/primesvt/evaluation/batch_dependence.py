"""Notes on results of models in which the images of a batch influence each other."""

from __future__ import annotations

from collections.abc import Sized
from typing import cast

from torch import nn

from primesvt.models import SpikingViT

__all__ = ["batch_note", "mixing_of", "score_note"]


def mixing_of(model: nn.Module) -> str:
    """The setting by which the images of a batch influence each other; empty where none does.

    A model that holds such a network mixes too.

    Example:
        >>> from primesvt.models import create_model
        >>> mixing_of(create_model("qkformer_digits")), mixing_of(create_model("sdt_v2_digits"))
        ('proj_neuron="mixed"', '')
    """
    inside = (module for module in model.modules() if isinstance(module, SpikingViT))
    return next((m.config.batch_mixing for m in inside if m.batch_dependent), "")


def batch_note(model: nn.Module, batch_size: int, **sets: object) -> tuple[str, ...]:
    """A sentence on the batches of an evaluation, where images of a batch influence each other.

    Args:
        model: what was measured.
        batch_size: images per forward pass.
        **sets: what it was measured on, by name; an incomplete last batch is part of the result.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("qkformer_digits")
        >>> print(*batch_note(model, 64, test=range(450)))
        The images of a batch influence each other in this model (proj_neuron="mixed"): evaluated
        in batches of 64, in a fixed order; the last batch of the test set has 2.
        >>> batch_note(create_model("sdt_v2_digits"), 64)
        ()
    """
    mixing = mixing_of(model)
    if not mixing:
        return ()
    lengths = {name: len(cast(Sized, part)) for name, part in sets.items() if part is not None}
    ends = [
        f"the last batch of the {name} set has {length % batch_size}"
        for name, length in lengths.items()
        if length % batch_size
    ]
    batches = "; ".join([f"in batches of {batch_size}, in a fixed order", *ends])
    return (f"{_opening(mixing)}: evaluated {batches}.",)


def score_note(model: nn.Module) -> tuple[str, ...]:
    """A sentence on a user's own score, where images of a batch influence each other.

    Example:
        >>> from primesvt.models import create_model
        >>> print(*score_note(create_model("qkformer_digits")))
        The images of a batch influence each other in this model (proj_neuron="mixed"): the score
        holds for the batches that it forms.
    """
    mixing = mixing_of(model)
    if not mixing:
        return ()
    return (f"{_opening(mixing)}: the score holds for the batches that it forms.",)


def _opening(mixing: str) -> str:
    return f"The images of a batch influence each other in this model ({mixing})"

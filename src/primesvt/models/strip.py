"""Remove parameters that no forward reads, and merge a distillation head into the classifier."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from primesvt.models.digest import config_of
from primesvt.models.heads import SpikingHead
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["match_state", "merge_head", "strip_unused"]

UNUSED = "unused"  # the container of what official code keeps and no forward reads


def strip_unused(model: nn.Module) -> int:
    """Remove all parameters that no forward reads from a registry model, in place.

    Returns how many parameters went. Other modules are left alone: what they call unused is theirs.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("spikformer_digits")
        >>> strip_unused(model) > 0, strip_unused(model)
        (True, 0)
    """
    gone = 0
    ours = config_of(model) is not None
    for owner in [m for m in model.modules() if UNUSED in m._modules] if ours else []:
        gone += sum(parameter.numel() for parameter in owner.get_submodule(UNUSED).parameters())
        del owner._modules[UNUSED]
    return gone


def merge_head(model: nn.Module) -> bool:
    """Merge the two classifiers that a distilled model averages into one, in place.

    Both read the same spikes, so the classifier of averaged weights gives the averaged logits.
    Returns whether there were two.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits", distillation=True)
        >>> merge_head(model), merge_head(model)
        (True, False)
    """
    if config_of(model) is None or not isinstance(model, SpikingViT):
        return False
    head = model.head
    if type(head) is not SpikingHead or head.fc_kd is None:
        return False
    with torch.no_grad():
        for mine, other in zip(head.fc.parameters(), head.fc_kd.parameters(), strict=True):
            mine.copy_((mine.double() + other.double()) / 2)
    head.fc_kd = None
    return True


def match_state(model: nn.Module, names: Container[str]) -> None:
    """Apply ``strip_unused`` and ``merge_head`` where a stored state dict shows that they were.

    Args:
        model: a registry model; any other is left alone.
        names: of the stored tensors. What they have only in part stays, to be found missing.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits", distillation=True)
        >>> match_state(model, {"head.fc.weight", "head.fc.bias"})
        >>> model.head.fc_kd is None
        True
    """
    own = list(model.state_dict())
    unused = [name for name in own if UNUSED in name.split(".")]
    if not any(name in names for name in unused):
        strip_unused(model)
    if not any(name in names for name in own if name.startswith("head.fc_kd.")):
        merge_head(model)

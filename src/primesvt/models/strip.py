"""Remove parameters that no forward reads, and merge layers between which nothing spikes."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from primesvt.models.blocks import ConvBN
from primesvt.models.digest import config_of
from primesvt.models.families._sdt_v3_large_network import RepConv
from primesvt.models.heads import SpikingHead
from primesvt.models.spiking_vit import SpikingViT

__all__ = ["match_state", "merge_chain", "merge_head", "mergeable_chains", "strip_unused"]

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


def mergeable_chains(model: nn.Module) -> tuple[str, ...]:
    """Name the pairs of linear layers that are smaller as one: ``RepConv`` of SDT-V3 large.

    Two 1x1 layers with a batch norm and no neuron in between compute what one layer does, and the
    width between them is larger than the widths outside.

    Example:
        >>> from primesvt.models import create_model
        >>> mergeable_chains(create_model("sdt_v3_large_small"))[0]
        'blocks.block3_0.attn.q'
    """
    if config_of(model) is None:
        return ()
    return tuple(
        path
        for path, module in model.named_modules()
        if isinstance(module, RepConv)
        and UNUSED not in path.split(".")
        and isinstance(module.inner, ConvBN)
        and _saves(module.inner, module.outer)
    )


def _saves(inner: ConvBN, outer: ConvBN) -> bool:
    """Whether one layer has fewer parameters than two."""
    hidden, inputs = inner.conv.weight.shape[:2]
    outputs = len(outer.conv.weight)
    apart = hidden * (inputs + outputs) + sum(p.numel() for p in inner.bn.parameters())
    return inputs * outputs < apart


def merge_chain(model: nn.Module, path: str) -> None:
    """Merge two linear layers and the batch norm between them into the outer one, in place.

    With ``y = W2 (s * (W1 x) + t)``, where ``s`` and ``t`` are the norm's scale and shift in
    evaluation, the new weight is ``W2 diag(s) W1``, and the outer norm's mean loses ``W2 t``. It is
    computed in double precision and rounded once.

    Args:
        model: changed; the outer norm and whatever follows stay as they are.
        path: of a pair that ``mergeable_chains`` names.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v3_large_small")
        >>> merge_chain(model, "blocks.block3_0.attn.q")
        >>> "blocks.block3_0.attn.q" in mergeable_chains(model)
        False
    """
    pair = model.get_submodule(path)
    assert isinstance(pair, RepConv) and isinstance(pair.inner, ConvBN)
    first, norm, outer = pair.inner.conv, pair.inner.bn, pair.outer
    with torch.no_grad():
        scale, shift = _scale_and_shift(norm)
        last = outer.conv.weight.double().flatten(1)
        inside = first.weight.double().flatten(1)
        if first.bias is not None:
            shift = shift + scale * first.bias.double()
        weight = ((last * scale) @ inside)[..., None]
        mean: torch.Tensor = outer.bn.get_buffer("running_mean")
        mean.copy_(mean.double() - last @ shift)
    old = outer.conv
    outer.conv = nn.Conv1d(len(inside.T), len(last), 1, bias=old.bias is not None, device="meta")
    outer.conv.weight = nn.Parameter(weight.to(old.weight), requires_grad=old.weight.requires_grad)
    outer.conv.bias = old.bias
    outer.conv.train(old.training)
    pair.inner = nn.Identity()


def _scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm multiplies with and adds in evaluation, in double precision."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * mean.double()


def match_state(model: nn.Module, names: Container[str]) -> None:
    """Strip and merge what a stored state dict shows to have been stripped or merged.

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
    for path in mergeable_chains(model):
        if not any(name in names for name in own if name.startswith(f"{path}.inner.")):
            merge_chain(model, path)

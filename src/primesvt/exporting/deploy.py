"""Networks in inference form: plain neurons, folded batch norms, no unused parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn

from primesvt.channels.verification import InDoublePrecision
from primesvt.evaluation.batch_dependence import mixing_of
from primesvt.exporting.batchnorm_folding import Folded, fold_norms
from primesvt.exporting.packing import pack
from primesvt.exporting.plain_neurons import KNOWN, Plain, plain
from primesvt.models import SpikingViT, reset
from primesvt.models.blocks import ConvBN
from primesvt.models.forward import working_copy
from primesvt.models.neurons import AcrossImages, neurons
from primesvt.models.state import settle
from primesvt.models.strip import merge_chain, merge_head, mergeable_chains, strip_unused

__all__ = ["DeployedNetwork", "deploy", "quick", "simplify", "spiking_modules"]


def quick(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy that runs faster on a CPU, for inference under ``torch.no_grad()`` alone.

    Batch norms are folded, what nothing reads is gone, channels lie last and weights as the
    processor's library reads them. It answers as the model does but for rounding, which may flip a
    spike now and then: compare both on images of yours before you rely on it. The model is left as
    it is; save that one, since the copy has no state to save.

    Args:
        model: with float32 weights.
        example: what it reads, at least two samples; best as many as it will be given at a time.

    Raises:
        ValueError: a norm without running statistics, or one that something else reads past, so
            that folding would change more than rounding.

    Example:
        >>> from primesvt import create_model
        >>> model = create_model("sdt_v2_digits", pretrained=True)
        >>> images = torch.rand(2, 1, 8, 8)
        >>> net = quick(model, images)
        >>> with torch.no_grad():
        ...     net(images).shape
        torch.Size([2, 10])
    """
    whole, made = (working_copy(model, double=True) for _ in range(2))
    example = example.cpu()
    double = example[:2].double()  # two show it; in double precision a batch takes its memory twice
    with torch.no_grad():
        before = _answer_of(whole, double)
        simplify(made, double)
        after = _answer_of(made, double)
    if not torch.allclose(before, after, rtol=1e-6, atol=1e-6, equal_nan=True):
        raise ValueError(
            "folding batch norms would change what this model computes, as something else reads"
            " the layers in front too; use the model as it is"
        )
    made = made.float().to(memory_format=torch.channels_last)
    pack(made, example.float())
    reset(made)
    return made


def simplify(model: nn.Module, example: Tensor, *, keep: bool = False) -> Folded:
    """Remove unused parameters, merge linear layers and fold norms, in place; ``keep`` folds none.

    Example:
        >>> from primesvt import create_model
        >>> model = create_model("sdt_v2_digits").eval()
        >>> len(simplify(model, torch.rand(2, 1, 8, 8)).folded)
        45
    """
    strip_unused(model)
    merge_head(model)
    for path in mergeable_chains(model):
        merge_chain(model, path)
    folded = fold_norms(model, (example,), keep=keep)
    for module in model.modules():
        if isinstance(module, ConvBN):
            _on_images(module)
    return folded


def _on_images(module: ConvBN) -> None:
    """Replace a 1x1 convolution of tokens by one of images, which needs no reshaping."""
    tokens = module.conv
    if not isinstance(tokens, nn.Conv1d) or tokens.kernel_size != (1,) or tokens.stride != (1,):
        return
    if "weight" not in tokens._parameters or tokens.padding != (0,):
        return
    made = nn.Conv2d(tokens.in_channels, tokens.out_channels, 1, groups=tokens.groups, bias=False)
    made.weight = nn.Parameter(tokens.weight.detach().unsqueeze(-1), requires_grad=False)
    if tokens.bias is not None:
        made.bias = nn.Parameter(tokens.bias.detach(), requires_grad=False)
    made._forward_hooks.update(tokens._forward_hooks)
    module.conv = made


def _answer_of(model: nn.Module, x: Tensor) -> Tensor:
    reset(model)
    answer: Tensor = model(x)
    reset(model)
    return answer


_DROPOUTS = (layer.Dropout, layer.Dropout2d)  # modules with a memory; in evaluation they pass on


@dataclass(frozen=True, kw_only=True)
class DeployedNetwork:
    """The network that is exported, its neuron layers, and how its batch norms were folded.

    Attributes:
        network: takes one tensor, gives logits ``[batch, classes]``; all weights in float32.
        neurons: its neuron layers by the names they have in the original.
        norms: what was folded.
        mixing: the setting by which images of a batch influence each other in the original; here
            each is answered as if it were alone.
        unfolded: folding would have changed more than rounding, so no norm is folded.
    """

    network: nn.Module = field(repr=False)
    neurons: Mapping[str, Plain] = field(repr=False)
    norms: Folded
    mixing: str = ""
    unfolded: bool = False

    def notes(self) -> tuple[str, ...]:
        """Sentences on how the exported network differs from the original."""
        notes = []
        if self.mixing:
            notes.append(
                f"The images of a batch influence each other in this model ({self.mixing}); the"
                " export answers each image as the model does in a batch of one."
            )
        if self.unfolded:
            notes.append(
                "Folding batch norms would change what this model computes, as something else"
                " reads the layers in front too; they are written as a scale and a shift."
            )
        elif self.norms.scaled:
            count = len(self.norms.scaled)
            notes.append(
                f"{count} of {count + len(self.norms.folded)} batch norms have no layer directly in"
                " front that could take them up; they are written as a scale and a shift."
            )
        return tuple(notes)


def deploy(model: nn.Module, example: Tensor) -> DeployedNetwork:
    """Copy a network, fold its batch norms and replace its neurons by plain operators.

    Whether folding changed anything but rounding is checked in double precision on ``example``;
    where it did, which a module may bring about that reads a layer in a second way, no norm is
    folded.

    Args:
        model: a ``SpikingViT``, or a module with SpikingJelly's neurons.
        example: what it reads, at least two samples.

    Raises:
        ValueError: a kind of neuron, or of module with a memory, that cannot be written out.

    Example:
        >>> from primesvt.models import create_model
        >>> made = deploy(create_model("sdt_v2_digits"), torch.rand(2, 1, 8, 8))
        >>> len(made.neurons), len(made.norms.folded), made.norms.scaled
        (31, 45, ())
    """
    double = example.double()
    made = _made(model, double)
    before = _answer(_at_rest(model, double), double, alone=bool(made.mixing))
    after = _answer(made.network, double)
    if not torch.allclose(before, after, rtol=1e-6, atol=1e-6):
        made = _made(model, double, keep=True)
        after = _answer(made.network, double)
        if not torch.allclose(before, after, rtol=1e-6, atol=1e-6):
            off = float((after - before).abs().max())
            raise ValueError(
                f"a {type(model).__name__} cannot be written out of plain operators: its logits"
                f" would be off by up to {off:.2g}; a module of it computes something else than"
                " its class says, such as a neuron or norm with a forward of its own"
            )
    made.network.float()
    return made


def _at_rest(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy in double precision, with what its modules keep between forwards known."""
    copy = working_copy(model, double=True)
    with _exactly(copy):
        behaviour = settle(copy, (example[:2],))
    if behaviour.draws:
        raise ValueError(
            f"the forward of {type(model).__name__} draws random numbers, which an exported network"
            " would draw otherwise; export what comes behind them"
        )
    return copy


@contextmanager
def _exactly(model: nn.Module) -> Iterator[None]:
    """Let somebody's own forward, which may cast to single precision, run in double precision."""
    with nullcontext() if isinstance(model, SpikingViT) else InDoublePrecision():
        yield


def _made(model: nn.Module, example: Tensor, *, keep: bool = False) -> DeployedNetwork:
    """In double precision, so that folding rounds once."""
    copy = _at_rest(model, example)
    _answer(copy, example)  # some networks fix what depends on the image size now
    with _exactly(copy):
        norms = simplify(copy, example, keep=keep)
    return DeployedNetwork(
        network=copy,
        neurons=dict(_written_out(copy)),
        norms=norms,
        mixing=mixing_of(model),
        unfolded=keep,
    )


def _written_out(model: nn.Module) -> Iterator[tuple[str, Plain]]:
    """Replace every neuron by a plain one."""
    names = {id(module): name for name, module in model.named_modules()}
    for module in list(spiking_modules(model).values()):
        name = names[id(module)]
        made = plain(module.lif if isinstance(module, AcrossImages) else module, name=name)
        made._forward_pre_hooks.update(module._forward_pre_hooks)
        made._forward_hooks.update(module._forward_hooks)
        _put(model, name, made)
        yield name, made
    for name, module in list(model.named_modules()):
        if isinstance(module, _DROPOUTS):
            _put(model, name, nn.Identity())
        elif isinstance(module, base.MemoryModule):
            raise ValueError(
                f"{name} is a {type(module).__name__}, which remembers what it has seen and cannot"
                f" be written as plain operators; {KNOWN} can"
            )


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    if not name:
        raise ValueError("the model is a single neuron; give a network that classifies")
    model.set_submodule(name, module)


def spiking_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The neuron layers of a network by name; a wrapper that runs across images counts as one.

    Example:
        >>> from primesvt.models import create_model
        >>> [n for n in spiking_modules(create_model("qkformer_digits")) if "proj_lif" in n][-1]
        'blocks.block2_0.attn.proj_lif'
    """
    spiking = {id(m) for m in neurons(model) if not isinstance(m, _DROPOUTS)}
    across = {name: m for name, m in model.named_modules() if isinstance(m, AcrossImages)}
    return {
        name: module
        for name, module in model.named_modules()
        if (id(module) in spiking or name in across) and name.rpartition(".")[0] not in across
    }


def _answer(model: nn.Module, x: Tensor, *, alone: bool = False) -> Tensor:
    """The logits of a network with reset neurons; ``alone`` runs one sample at a time."""
    with torch.no_grad():
        parts = x.split(1) if alone else (x,)
        answers = []
        for part in parts:
            reset(model)
            for module in model.modules():
                if isinstance(module, Plain):
                    module.rest()
            try:
                with _exactly(model):
                    answer = model(part)
            except RuntimeError as error:
                raise ValueError(
                    f"the model cannot read inputs {list(part.shape)}:"
                    f" {str(error).splitlines()[0][:200]};"
                    " give it inputs that it can, for any number of samples"
                ) from error
            if not isinstance(answer, Tensor):
                raise ValueError(
                    f"the model must give logits [batch, classes] in evaluation mode, but gave a"
                    f" {type(answer).__name__}"
                )
            answers.append(answer)
        reset(model)
    return torch.cat(answers)

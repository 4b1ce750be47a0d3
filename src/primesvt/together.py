"""Several networks on the same inputs: what they have in common is computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from primesvt.calibration.inputs import calibrating
from primesvt.models import SpikingViT, reset

__all__ = ["Together", "block_of"]


@dataclass(frozen=True, kw_only=True)
class Together:
    """Networks that equal a common one up to a block each, run from there on.

    The common network runs block by block. In front of every block all networks that first differ
    in it take over its activation and go on alone, so only one activation is held at a time, and
    the result is bit by bit what each network gives on its own. Without a common network (any
    ``nn.Module``) each runs in full.

    Args:
        networks: what to run.
        common: the network that they share their first blocks with.
        starts: for every network its first block that is not the common network's.

    Example:
        >>> import torch
        >>> from primesvt.models import create_model
        >>> net = create_model("sdt_v2_digits").eval()
        >>> pair = Together(networks=[net, net], common=net, starts=[0, 3])
        >>> [logits.shape for logits in pair(torch.zeros(2, 1, 8, 8))]
        [torch.Size([2, 10]), torch.Size([2, 10])]
    """

    networks: Sequence[nn.Module]
    common: SpikingViT | None = None
    starts: Sequence[int] = ()

    def __call__(self, *inputs: Any) -> list[Any]:
        """What every network gives for one batch, with fresh neurons."""
        if self.common is None:
            return [_alone(network, inputs) for network in self.networks]
        return self._branched(self.common, *inputs)

    def _branched(self, common: SpikingViT, x: Any) -> list[Any]:
        networks = [network for network in self.networks if isinstance(network, SpikingViT)]
        for network in networks:
            network.enter(x)  # one model takes the size of its first image
        found: dict[int, Any] = {}
        reset(common)
        activation = common.enter(x)
        for block in range(max(self.starts, default=-1) + 1):
            for number, network in enumerate(networks):
                if self.starts[number] == block:
                    found[number] = network.resume(activation, block)
            if block < max(self.starts):
                activation = common.blocks[block](activation)
        reset(common)
        return [found[number] for number in range(len(self.networks))]

    def only(self, numbers: Sequence[int]) -> Together:
        """Some of the networks."""
        if len(numbers) == len(self.networks):
            return self
        return Together(
            networks=[self.networks[number] for number in numbers],
            common=self.common,
            starts=[self.starts[number] for number in numbers] if self.common is not None else (),
        )

    @contextlib.contextmanager
    def calibrating(self) -> Iterator[None]:
        """Evaluation mode, without gradients, for all of them."""
        with contextlib.ExitStack() as stack:
            for network in (*self.networks, *([self.common] if self.common else [])):
                stack.enter_context(calibrating(network))
            yield


def block_of(model: nn.Module) -> Callable[[str], int]:
    """In which block of a model a module lies, by its name; the head counts as one more.

    0 for every module of a network without blocks.

    Example:
        >>> from primesvt.models import create_model
        >>> model = create_model("sdt_v2_digits")
        >>> find, last = block_of(model), len(model.blocks) - 1
        >>> find("blocks.block4_0.mlp.fc1.conv") == last, find("head.fc") == last + 1
        (True, True)
    """
    if not isinstance(model, SpikingViT):
        return lambda _: 0
    places = {name: number for number, (name, _) in enumerate(model.blocks.named_children())}

    def find(module: str) -> int:
        first, _, rest = module.partition(".")
        if first == "head":
            return len(places)
        return places.get(rest.partition(".")[0], 0) if first == "blocks" else 0

    return find


def _alone(network: nn.Module, inputs: tuple[Any, ...]) -> Any:
    reset(network)
    result = network(*inputs)
    reset(network)
    return result

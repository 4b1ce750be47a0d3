"""Run several networks on the same inputs, and compute the blocks that they share once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from primesvt.models.forward import evaluating, in_its_dtype
from primesvt.models.spiking_vit import SpikingViT
from primesvt.models.state import DRAWS, drawing_alike, reset
from primesvt.models.stored_outputs import ActivationCache, CacheKey, StoredOutputs

__all__ = ["VariantBatch", "block_of"]


@dataclass(frozen=True, kw_only=True)
class VariantBatch:
    """Networks that share their first blocks with a common one, run on the same inputs together.

    The common network runs block by block. In front of every block all networks that first differ
    in it take over its activation and go on alone, and the result is bit by bit what each network
    gives on its own. Without a common network (any ``nn.Module``) each runs alone; with ``stored``,
    modules that depend on nothing that differs give what they gave before.

    With ``prefixes`` those activations are kept, and a later call on the same batch begins with
    them. Without, only one is held at a time.

    Args:
        networks: what to run.
        common: the network that they share their first blocks with.
        starts: for every network its first block that is not the common network's.
        prefixes: where activations are kept.
        before: block -> what tells apart networks that differ in front of it.
        stored: outputs of modules of any network.

    Example:
        >>> import torch
        >>> from primesvt.models import create_model
        >>> net = create_model("sdt_v2_digits").eval()
        >>> pair = VariantBatch(networks=[net, net], common=net, starts=[0, 3])
        >>> [logits.shape for logits in pair(torch.zeros(2, 1, 8, 8))]
        [torch.Size([2, 10]), torch.Size([2, 10])]
    """

    networks: Sequence[nn.Module]
    common: SpikingViT | None = None
    starts: Sequence[int] = ()
    prefixes: ActivationCache | None = None
    before: Callable[[int], Hashable] = lambda _: ()
    stored: StoredOutputs | None = None

    def __call__(self, *inputs: Any, data: Hashable = None, batch: int = 0) -> list[Any]:
        """The outputs of every network for one batch, with reset neurons.

        ``data`` and ``batch`` name the batch for activations that are kept; they are kept for named
        data only.
        """
        if self.common is None:
            return [self._alone(network, inputs, data, batch) for network in self.networks]
        (x,) = inputs
        networks = [network for network in self.networks if isinstance(network, SpikingViT)]
        for network in networks:
            network.enter(x)  # one model takes the size of its first image
        found: dict[int, Any] = {}
        reset(self.common)
        place, activation = 0, self.common.enter(x)
        for block in sorted(set(self.starts)):
            place, activation = self._nearest(place, activation, block, data, batch)
            for module in self.common.blocks[place:block]:
                activation = module(activation)
            if block > place and self.prefixes is not None and data is not None:
                self.prefixes.keep(self._place(block, data), batch, activation)
            place = block
            for number, network in enumerate(networks):
                if self.starts[number] == block:
                    found[number] = network.resume(activation, block)
        reset(self.common)
        return [found[number] for number in range(len(self.networks))]

    def _nearest(
        self, place: int, activation: Tensor, block: int, data: Hashable, batch: int
    ) -> tuple[int, Tensor]:
        """The stored activation nearest in front of a block, and the block that it enters."""
        if self.prefixes is not None and data is not None:
            for later in range(block, place, -1):
                known = self.prefixes.find(self._place(later, data), batch)
                if known is not None:
                    return later, known
        return place, activation

    def _place(self, block: int, data: Hashable) -> CacheKey:
        return CacheKey(inputs=data, block=block, before=self.before(block))

    def _alone(
        self, network: nn.Module, inputs: tuple[Any, ...], data: Hashable, batch: int
    ) -> Any:
        """The output of one network; one that draws random numbers runs all of its modules."""
        inputs = in_its_dtype(network, inputs)
        reset(network)
        if self.stored is not None and data is not None and DRAWS not in vars(network):
            result = self.stored(network, inputs, data=data, batch=batch)
        else:
            with drawing_alike(network, batch):
                result = network(*inputs)
        reset(network)
        return result

    def only(self, numbers: Sequence[int]) -> VariantBatch:
        """A batch of some of the networks."""
        if len(numbers) == len(self.networks):
            return self
        return replace(
            self,
            networks=[self.networks[number] for number in numbers],
            starts=[self.starts[number] for number in numbers] if self.common is not None else (),
        )

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, without gradients, for all of them."""
        with contextlib.ExitStack() as stack:
            for network in (*self.networks, *([self.common] if self.common else [])):
                stack.enter_context(evaluating(network))
            yield


def block_of(model: nn.Module) -> Callable[[str], int]:
    """A function from a module's name to the number of its block; the head counts as one more.

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

"""Fit the layers of a pruned network, one after another, to what they give in the dense network.

Making up for lost inputs layer by layer leaves the errors of all layers in front, which add up.
Here every layer sees the inputs that it really has in the pruned network, and is fitted to the
outputs that it has in the dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from primesvt.calibration import ActivationStatistics, CalibrationSet
from primesvt.calibration.least_squares import ROUNDING, Pairs, fitted
from primesvt.calibration.norm_inputs import NormInput, norm_input
from primesvt.calibration.wiring import channel_axis
from primesvt.channels.graph import Ids
from primesvt.channels.surgery import kept_along
from primesvt.models import SpikingViT, reset
from primesvt.models.fast_paths import forgetting
from primesvt.models.forward import LAYERS, evaluating, hooked
from primesvt.models.norms import is_norm

__all__ = ["match"]

ROWS = 2**14  # observations of a layer per batch
IMAGES = 128  # that they come from, over all samples and time steps of a batch


def match(pruned: nn.Module, activity: ActivationStatistics, cuts: Mapping[str, Ids]) -> None:
    """Fit the layers of a pruned network to the outputs of the dense one, in place.

    Layer by layer in forward order, with ``x`` the inputs in the pruned network and ``y`` the
    outputs in the dense one, of the channels that are left:

        W = argmin mean |W x + b - y|^2 + d |W - W_0|^2

    where ``W_0`` is what the layer has, and ``d`` is the one of several that is best on a quarter
    of the images, which the fit did not see; where none is better than ``W_0`` there, the layer
    stays. Batch norms then get the statistics with which they give the mean and variance that they
    gave in the dense network. There is no gradient; every block is run once for each of its layers.

    Grouped convolutions keep their weights. ``pruned`` must have the statistics of the dense
    network's norms.

    Args:
        pruned: a pruned copy, changed in place.
        activity: of the dense network, with its calibration inputs.
        cuts: group -> kept channels ``[positions, k]``.

    Source: Li et al., "GPTAQ: Efficient finetuning-free quantization for asymmetric calibration"
    (arXiv 2504.02692), whose target is the output of the dense layer; here for removed channels,
    with centred moments, as firing is neither centred nor independent.
    """
    dense, calibration = activity.model, activity.calibration
    stages = list(zip(_stages(dense), _stages(pruned), strict=True))
    given = [_inputs(model, calibration) for model in (dense, pruned)]
    with torch.no_grad(), evaluating(dense), evaluating(pruned):
        for of_dense, of_pruned in stages:
            work = _Stage(
                activity=activity, pruned=pruned, cuts=cuts, dense_stage=of_dense, stage=of_pruned
            )
            work.fit(*given)
            if of_dense is not stages[-1][0]:
                given = [[stage(x) for x in seen] for stage, seen in zip(
                    (of_dense, of_pruned), given, strict=True
                )]  # fmt: skip


Run = Callable[[Any], Any]


def _stages(model: nn.Module) -> list[Run]:
    """The blocks and the head of a network of ours, to be run one by one; else a whole forward."""
    if not isinstance(model, SpikingViT):
        return [partial(_whole, model)]
    return [partial(_part, model, module) for module in (*model.blocks, model.head)]


def _whole(model: nn.Module, batch: Any) -> Any:
    reset(model)
    try:
        return model(*batch)
    finally:
        reset(model)


def _part(model: nn.Module, module: nn.Module, x: Tensor) -> Any:
    reset(model)
    try:
        with forgetting():
            return module(x)
    finally:
        reset(model)


def _inputs(model: nn.Module, calibration: CalibrationSet) -> list[Any]:
    """What the first stage is given, batch by batch."""
    batches = list(calibration.fitting(model))
    return [model.enter(*batch) for batch in batches] if isinstance(model, SpikingViT) else batches


class _Enough(Exception):  # ends a forward whose rest is not needed
    pass


@dataclass(kw_only=True)
class _Stage:
    """One block of both networks, whose layers are fitted in the order in which they run."""

    activity: ActivationStatistics
    pruned: nn.Module
    cuts: Mapping[str, Ids]
    dense_stage: Run
    stage: Run
    wanted: dict[str, list[Tensor]] = field(default_factory=dict)  # outputs of dense layers
    seen: dict[str, list[NormInput]] = field(default_factory=dict)  # inputs of dense norms

    def fit(self, dense_inputs: Sequence[Any], inputs: Sequence[Any]) -> None:
        """Fit every layer of the stage, and set the statistics of its norms."""
        order = self._watch_dense(dense_inputs)
        done: set[str] = set()
        for name in order:
            if name in done:
                continue
            module = self.pruned.get_submodule(name)
            if is_norm(module):
                self._set_norm(name, [norm_input(module, x) for x in self._given(name, inputs)])
            else:
                done |= self._fit_layer(name, inputs)

    def _watch_dense(self, inputs: Sequence[Any]) -> list[str]:
        """Run the dense stage; returns the names of what ran, in order."""
        order: dict[str, None] = {}

        def note(name: str, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            order.setdefault(name)
            if is_norm(module):
                self.seen.setdefault(name, []).append(norm_input(module, args[0]))
            else:
                self.wanted.setdefault(name, []).append(_outputs(module, out))

        dense = self.activity.model
        tied = _tied(dense)
        names = [n for n, m in dense.named_modules() if is_norm(m) or (_fits(m) and n not in tied)]
        hooks = (dense.get_submodule(n).register_forward_hook(partial(note, n)) for n in names)
        with hooked(hooks):
            for x in inputs:
                self.dense_stage(x)
        return list(order)

    def _given(self, name: str, inputs: Sequence[Any]) -> Iterator[Tensor]:
        """What a module of the pruned stage is given, call by call."""
        found: list[Tensor] = []

        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0])
            if len(found) == calls:
                raise _Enough

        calls = len(self.seen.get(name, self.wanted.get(name, []))) // len(inputs)
        with hooked([self.pruned.get_submodule(name).register_forward_pre_hook(note)]):
            for x in inputs:
                with suppress(_Enough):
                    self.stage(x)
                yield from found
                found.clear()

    def _fit_layer(self, name: str, inputs: Sequence[Any]) -> set[str]:
        """Fit one layer and set the statistics of the norm behind it; returns the names of both."""
        layer = self.pruned.get_submodule(name)
        assert isinstance(layer, LAYERS)
        weight = f"{name}.weight"
        graph = self.activity.graph
        left = (
            torch.from_numpy(kept_along(graph, weight, 0, self.cuts))
            if weight in graph.tensors
            else torch.arange(len(layer.weight))
        )
        fit, held = Pairs.none(), Pairs.none()
        for x, y in zip(self._given(name, inputs), self.wanted.pop(name), strict=True):
            rows, targets = _rows(layer, x), y[..., left.to(y.device)]
            if len(rows) >= 4:
                held = held.add(rows[3::4], targets[3::4])
                rows, targets = rows[_not_fourth(len(rows))], targets[_not_fourth(len(rows))]
            fit = fit.add(rows, targets)
        norms = self.activity.wiring.feeds.get(name, ())
        behind = norms[0] if self.activity.wiring.norm_after(name) and len(norms) == 1 else None
        centred = layer.bias is not None or behind is not None
        old = layer.weight.double().flatten(1)
        new, bias = fitted(fit, held, old, centred=centred)
        layer.weight.copy_(new.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(bias)
        if behind is None or len(self.seen.get(behind, ())) != len(inputs):
            return {name}
        both = fit.with_(held)
        shift = bias if layer.bias is not None else torch.zeros_like(bias)
        mean = new @ both.mean_x + shift
        variance = ((new @ both.covariance) * new).sum(1)
        self._move(behind, mean, variance, both.mean_y, both.variance_y)
        return {name, behind}

    def _set_norm(self, name: str, found: Sequence[NormInput]) -> None:
        """Give a norm the statistics with which it gives what it gave in the dense network."""
        left = self._left(name)
        m, v = _overall(found)
        m0, v0 = (each[left] for each in _overall(self.seen[name]))
        self._move(name, m, v, m0, v0)

    def _left(self, norm: str) -> Tensor:
        """Indices of the channels that a norm still has."""
        tensor, graph = f"{norm}.running_mean", self.activity.graph
        if tensor not in graph.tensors:
            return torch.arange(len(self.pruned.get_buffer(tensor)))
        return torch.from_numpy(kept_along(graph, tensor, 0, self.cuts))

    def _move(self, norm: str, m: Tensor, v: Tensor, m0: Tensor, v0: Tensor) -> None:
        """The rule of ``batchnorm.reestimate``, on all batches at once; rounding moves nothing."""
        module = self.pruned.get_submodule(norm)
        assert is_norm(module)
        mean, variance = module.running_mean.double(), module.running_var.double()
        m, m0 = m.to(mean), m0.to(mean)
        v, v0 = v.to(mean) + module.eps, v0.to(mean) + module.eps
        ratio = v / v0
        same = ((m - m0).abs() <= ROUNDING * v0.sqrt()) & ((ratio - 1).abs() <= ROUNDING)
        moved = torch.where(same, mean, m - (m0 - mean) * ratio.sqrt())
        module.running_mean.copy_(moved)
        module.running_var.copy_(torch.where(same, variance, variance * ratio))


def _fits(module: nn.Module) -> bool:
    """Whether a layer can be fitted: linear, or a convolution without groups, padded by zeros.

    What a weight is computed from, as by weight norm, is no weight to fit.
    """
    if module._parameters.get("weight") is None:
        return False
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups > 1:
        return False
    return isinstance(module.padding, tuple) and module.padding_mode == "zeros"


def _tied(model: nn.Module) -> set[str]:
    """Layers that share their weight with another module, which a fit to one would spoil."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name for names in users.values() if len(names) > 1 for name in names}


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs of a layer, ``[images, places, in * taps]``, of a sample of all."""
    if isinstance(layer, nn.Linear):
        return _spread(x)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d) and isinstance(layer.padding, tuple)
    if isinstance(layer, nn.Conv2d):
        images = x.flatten(0, -4) if x.ndim > 3 else x[None]
        chosen = images[_some(len(images), IMAGES).to(x.device)]
        columns = functional.unfold(
            chosen, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )
        return _places(columns.transpose(1, 2))
    images = x if x.ndim > 2 else x[None]
    wide = images[_some(len(images), IMAGES).to(x.device)].unsqueeze(2)
    columns = functional.unfold(
        wide, (1, *layer.kernel_size), (1, *layer.dilation), (0, *layer.padding), (1, *layer.stride)
    )
    return _places(columns.transpose(1, 2))


def _outputs(layer: nn.Module, y: Tensor) -> Tensor:
    """Outputs of a layer at the samples that ``_rows`` takes, ``[images, places, out]``."""
    if isinstance(layer, nn.Linear):
        return _spread(y)
    axis = channel_axis(layer)
    images = y.flatten(0, axis - 2) if y.ndim > 1 - axis else y
    images = images if images.ndim == 1 - axis else images[None]
    chosen = images[_some(len(images), IMAGES).to(y.device)]
    return _places(chosen.flatten(2).transpose(1, 2))


def _spread(rows: Tensor) -> Tensor:
    """Rows of tokens ``[..., images, tokens, C]``; of three axes, each row may be an image."""
    images = rows.flatten(0, -3) if rows.ndim > 3 else rows.flatten(0, -2)[:, None]
    return _places(images[_some(len(images), max(IMAGES, ROWS // images.shape[1])).to(rows.device)])


def _places(rows: Tensor) -> Tensor:
    """At most so many places of every image that all rows together are at most ``ROWS``."""
    return rows[:, _some(rows.shape[1], max(1, ROWS // max(1, len(rows)))).to(rows.device)]


def _some(count: int, most: int) -> Tensor:
    """At most so many of ``count`` numbers, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _not_fourth(count: int) -> Tensor:
    return torch.arange(count) % 4 != 3


def _overall(calls: Sequence[NormInput]) -> tuple[Tensor, Tensor]:
    """Mean and variance over all calls."""
    total = sum(call.count for call in calls)
    mean = torch.stack([call.mean.double() * call.count for call in calls]).sum(0) / total
    squares = [(c.variance.double() + c.mean.double().square()) * c.count for c in calls]
    return mean, (torch.stack(squares).sum(0) / total - mean.square()).clamp(min=0.0)

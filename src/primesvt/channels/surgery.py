"""Remove whole channels from a model's tensors; no other module changes the size of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from primesvt.channels.adapter import install
from primesvt.channels.graph import (
    ChannelGraph,
    ChannelGroup,
    Ids,
    KeptChannels,
    TensorInfo,
    kept_mask,
)
from primesvt.models.forward import owner_of, state_tensors, unwrap
from primesvt.models.multihead import MultiheadAttention, follow_weights, take_widths_from_weights
from primesvt.models.state import REST, held_tensors, hold


def remove_channels(model: nn.Module, graph: ChannelGraph, cuts: KeptChannels) -> ChannelGraph:
    """Keep only the given channels of every named group, in place.

    dtype, device, memory format, ``requires_grad`` and each module's ``training`` flag stay as they
    are. New ``Parameter`` objects arise, so make optimizers afterwards.

    Args:
        model: the traced model (or one of the same widths); wrappers are unwrapped.
        graph: the graph of this model.
        cuts: group name -> kept current indices, ``[positions, k]`` (``[k]`` for one position).

    Returns:
        The graph of the smaller model, which still knows the original indices.

    Raises:
        ValueError: unknown group, bad indices, a group that cannot be cut, or other widths.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from primesvt.channels import remove_channels, trace
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> graph = trace(net, torch.randn(1, 4))
        >>> small = remove_channels(net, graph, {"0": [0, 2, 5]})
        >>> net[0].weight.shape, net[2].weight.shape
        (torch.Size([3, 4]), torch.Size([2, 3]))
        >>> small.original("0").tolist()
        [[0, 2, 5]]
    """
    model = unwrap(model)
    rows = {name: graph.kept(name, kept) for name, kept in cuts.items()}
    for name in rows:
        group = graph[name]
        if group.status != "free":
            raise ValueError(f"group '{name}' is {group.status} ({group.reason}): leave it out")
        if group.kind == "heads":
            raise ValueError(
                f"group '{name}' holds whole heads, which are not pruned: leave it out"
            )
    held = held_tensors(model)
    state = {**held, **state_tensors(model)}
    check_widths(state, graph)
    after = graph.after(rows)
    smaller: dict[int, torch.Tensor] = {}
    for name, dims in _touched(graph, rows).items():
        tensor = state[name]
        if id(tensor) not in smaller:
            smaller[id(tensor)] = _like(tensor, _cut_tensor(graph, name, tensor, dims, rows))
        path, _, leaf = name.rpartition(".")
        rest = model.get_submodule(path).__dict__.get(REST, {})
        if isinstance(kept := rest.get(leaf), torch.Tensor) and kept.shape == tensor.shape:
            rest[leaf] = _cut_tensor(graph, name, kept, dims, rows)
    for name, tensor in state.items():
        if id(tensor) in smaller:
            new = smaller[id(tensor)]
            if name in held:
                hold(model, name, new)
                continue
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            if isinstance(new, nn.Parameter):
                owner._parameters[leaf] = new
            else:
                owner._buffers[leaf] = new
    changed = {name for name in graph.tensors if after.shape(name) != graph.shape(name)}
    take_widths_from_weights(model, changed)
    _update_attributes(model, after, changed)
    if any(row.shape[1] < graph[name].size for name, row in rows.items()):
        install(model, graph.rewrites, graph.seen, after.sizes)
    return after


def check_widths(state: dict[str, torch.Tensor], graph: ChannelGraph) -> None:
    for name in graph.tensors:
        if name not in state:
            raise ValueError(f"the graph knows '{name}' and the model does not: trace this model")
        if tuple(state[name].shape) != graph.shape(name):
            raise ValueError(
                f"'{name}' has shape {tuple(state[name].shape)} but the graph was traced at "
                f"{graph.shape(name)}: use the graph that remove_channels returned, or trace again"
            )


def kept_along(graph: ChannelGraph, tensor: str, axis: int, rows: Mapping[str, Ids]) -> Ids:
    """Indices along an axis of a tensor that stay; ``rows`` as ``graph.kept`` gives them."""
    keep = np.ones(graph.shape(tensor)[axis], dtype=bool)
    for name, kept in rows.items():
        group = graph[name]
        if any(m.tensor == tensor and m.axis == axis for m in group.members):
            keep &= _mask(graph, tensor, axis, group, kept)
    return np.flatnonzero(keep)


def _touched(graph: ChannelGraph, names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """tensor -> axis -> the cut groups that lie on it."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        for member in graph[name].members:
            found.setdefault(member.tensor, {}).setdefault(member.axis, []).append(name)
    return found


def _cut_tensor(
    graph: ChannelGraph,
    name: str,
    tensor: torch.Tensor,
    dims: dict[int, list[str]],
    rows: dict[str, Ids],
) -> torch.Tensor:
    blocks: list[tuple[int, ChannelGroup]] = []
    for axis, groups in dims.items():
        keep = np.ones(tensor.shape[axis], dtype=bool)
        on_axis = graph.tensors[name].axes[axis].symbols()
        for group in map(graph.__getitem__, groups):
            # Axis 1 of a grouped convolution, whose groups stand on axis 0.
            if any(front not in on_axis for front in group.front_symbols):
                blocks.append((axis, group))
            else:
                keep &= _mask(graph, name, axis, group, rows[group.name])
        if not keep.all():
            index = torch.from_numpy(np.flatnonzero(keep)).to(tensor.device)
            tensor = tensor.index_select(axis, index)
    for axis, group in blocks:
        tensor = _gather_blocks(tensor, axis, group, rows[group.name])
    return tensor


def _mask(
    graph: ChannelGraph, name: str, axis: int, group: ChannelGroup, rows: Ids
) -> npt.NDArray[np.bool_]:
    member = next(m for m in group.members if m.tensor == name and m.axis == axis)
    ids = graph.ids(group, member)
    return (ids < 0) | kept_mask(group, rows).reshape(-1)[np.maximum(ids, 0)]


def _gather_blocks(tensor: torch.Tensor, axis: int, group: ChannelGroup, rows: Ids) -> torch.Tensor:
    """Each block of output rows reads its own kept columns (rows of a block are contiguous)."""
    per_block = tensor.shape[0] // group.positions
    index = torch.from_numpy(np.repeat(rows, per_block, axis=0)).to(tensor.device)
    shape = [tensor.shape[0], rows.shape[1], *[1] * (tensor.dim() - 2)]
    return tensor.take_along_dim(index.reshape(shape), dim=axis)


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Make a tensor like the one it replaces: memory format, ``Parameter``, ``requires_grad``."""
    new = new.detach()
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(old.dim())
    keeps_last = last is not None and not old.is_contiguous()
    if last is not None and keeps_last and old.is_contiguous(memory_format=last):
        new = new.contiguous(memory_format=last)
    else:
        new = new.contiguous()
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _update_attributes(model: nn.Module, graph: ChannelGraph, changed: Set[str]) -> None:
    """Update the widths that PyTorch's own modules store as attributes."""
    owners = {owner_of(name) for name in changed}
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            _update_recurrent(module)
        if isinstance(module, MultiheadAttention):
            follow_weights(module)
        name = f"{path}.weight" if path else "weight"
        computed = is_parametrized(module, "weight")
        if path not in owners or not (computed or name in graph.tensors):
            continue
        with torch.no_grad():
            weight = module.weight
        if isinstance(module, nn.modules.conv._ConvNd):
            _update_convolution(module, weight, None if computed else graph.tensors[name], graph)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            module.num_features = weight.shape[0]


def _update_convolution(
    module: nn.modules.conv._ConvNd,
    weight: torch.Tensor,
    info: TensorInfo | None,
    graph: ChannelGraph,
) -> None:
    """Update the channels of a convolution; of a computed weight the trace has no ``info``."""
    depthwise = module.groups == module.in_channels > 1
    if info is not None and info.groups is not None:
        module.groups = info.groups.length(graph.sizes)
    elif info is None and depthwise:  # the groups are the channels
        rows = 1 if module.transposed else module.out_channels // module.groups
        module.groups = weight.shape[0] // rows
    inside, outside = (0, 1) if module.transposed else (1, 0)
    module.out_channels = weight.shape[outside] * (module.groups if module.transposed else 1)
    module.in_channels = weight.shape[inside] * (1 if module.transposed else module.groups)


def _update_recurrent(module: nn.RNNBase) -> None:
    """Update the widths of a recurrent layer, and its own list of its weights."""
    parameters = dict(module.named_parameters())
    module.input_size = parameters["weight_ih_l0"].shape[1]
    module.hidden_size = parameters["weight_hh_l0"].shape[1]
    names = module._flat_weights_names
    module._flat_weights = [getattr(module, name) for name in names]

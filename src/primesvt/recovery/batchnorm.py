"""Batch-norm re-estimation: running statistics of what a norm really sees after a cut."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from primesvt.calibration import Calibration, calibrating
from primesvt.calibration.wiring import NORMS

__all__ = ["reestimate"]


def reestimate(model: nn.Module, calibration: Calibration, norms: Iterable[str]) -> None:
    """Replace the running statistics of some norms by those on calibration inputs, in one pass.

    While the pass runs, these norms normalise by the statistics of each batch, so later ones see
    what earlier ones will give. Means and variances are averaged over equally weighted batches;
    one that shows a norm a single value per channel, which has no variance, is left out.

    Source: Li et al., "EagleEye: fast sub-net evaluation for efficient neural network pruning"
    (arXiv 2007.02491), adaptive batch normalization.

    Example:
        >>> import torch
        >>> from primesvt.calibration import calibration_of
        >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> inputs = calibration_of(torch.tensor([[1.0], [3.0]]))
        >>> reestimate(net, inputs, ["0"])
        >>> net[0].running_mean.item(), net[0].running_var.item(), net[0].training
        (2.0, 2.0, False)
    """
    layers = [layer for name in norms if isinstance(layer := model.get_submodule(name), NORMS)]
    layers = [layer for layer in layers if layer.running_mean is not None]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    known = [{name: value.clone() for name, value in layer.named_buffers()} for layer in layers]
    handles = [layer.register_forward_pre_hook(_only_of_several) for layer in layers]
    with calibrating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over batches
            layer.train()
        try:
            for _ in calibration.run(model):
                pass
        finally:
            for layer, momentum, handle, before in zip(
                layers, momenta, handles, known, strict=True
            ):
                handle.remove()
                layer.momentum = momentum
                if not layer.num_batches_tracked:  # nothing seen: what was known stays
                    for name, value in layer.named_buffers():
                        value.copy_(before[name])


def _only_of_several(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Estimate from inputs with more than one value per channel only."""
    norm.training = args[0].numel() > args[0].shape[1]

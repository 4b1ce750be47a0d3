"""What a measurement was made on: digests of data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

__all__ = ["data_digest"]


_LOOKS = 16


def data_digest(dataset: Dataset[Any]) -> str:
    """SHA-256 over the size, the listed labels and a few samples of a data set.

    Raises ``ValueError`` where a sample looks different each time it is read (augmentation), as
    probes could then not be compared.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> len(data_digest(TensorDataset(torch.eye(3), torch.arange(3))))
        64
    """
    size = len(cast(Sized, dataset))
    digest = hashlib.sha256(_text({"size": size}))
    inner: Any = dataset
    while inner is not None:  # a subset hides the labels and the choice of what it is taken from
        for name in ("labels", "indices"):
            listed = getattr(inner, name, None)
            if listed is not None:
                digest.update(np.ascontiguousarray(np.asarray(listed)).tobytes())
        inner = inner.dataset if isinstance(inner, Subset) else None
    for index in sorted({round(k * (size - 1) / (_LOOKS - 1)) for k in range(_LOOKS)}):
        _add_sample(digest, dataset[index])
    image, again = dataset[0][0], dataset[0][0]
    if isinstance(image, Tensor) and not torch.equal(image, again):
        raise ValueError(
            "the data set gives another image each time it is read; "
            "give it without random augmentation"
        )
    return digest.hexdigest()


def _add_sample(digest: Any, sample: Any) -> None:
    image, label = sample
    _add(digest, torch.as_tensor(image))
    digest.update(_text({"label": int(label)}))


def _add(digest: Any, tensor: Tensor) -> None:
    dense = tensor.detach().cpu().contiguous()
    digest.update(_text({"shape": list(dense.shape)}))
    digest.update(dense.flatten().view(torch.uint8).numpy().tobytes())


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()

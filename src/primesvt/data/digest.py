"""Digests of data sets, which tell whether two measurements were made on the same samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

__all__ = ["add_tensor", "data_digest", "json_bytes"]


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
    digest = hashlib.sha256(json_bytes({"size": size}))
    inner: Any = dataset
    while inner is not None:  # a subset hides the labels and the choice of what it is taken from
        for name in ("labels", "indices"):
            listed = getattr(inner, name, None)
            if listed is not None:
                digest.update(np.ascontiguousarray(np.asarray(listed)).tobytes())
        inner = inner.dataset if isinstance(inner, Subset) else None
    for index in sorted({round(k * (size - 1) / (_LOOKS - 1)) for k in range(_LOOKS)}):
        sample, label = dataset[index]
        add_tensor(digest, torch.as_tensor(sample))
        digest.update(json_bytes({"label": int(label)}))
    image, again = dataset[0][0], dataset[0][0]
    if isinstance(image, Tensor) and not torch.equal(image, again):
        raise ValueError(
            "the data set gives another image each time it is read; "
            "give it without random augmentation"
        )
    return digest.hexdigest()


def add_tensor(digest: Any, tensor: Tensor) -> None:
    """Update a digest with the shape and the bytes of a tensor."""
    dense = tensor.detach().cpu().contiguous()
    digest.update(json_bytes({"shape": list(dense.shape)}))
    digest.update(dense.flatten().view(torch.uint8).numpy().tobytes())


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON of a mapping with sorted keys, so that equal mappings give equal bytes."""
    return json.dumps(value, sort_keys=True, default=str).encode()

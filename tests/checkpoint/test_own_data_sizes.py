"""Samples of a Dataset of another size than a model was made for are said; nothing resizes them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from primesvt.checkpoint.load import splits_for
from primesvt.models import create_model


@pytest.mark.parametrize(("size", "said"), [(8, ""), (16, "samples of 16 x 16 as they are given")])
def test_other_sizes_are_told(size: int, said: str) -> None:
    model = create_model("sdt_v2_digits")
    data = TensorDataset(torch.rand(40, 1, size, size), torch.arange(40) % 10)
    found = splits_for(model, data).description()
    assert (said in found) if said else ("as they are given" not in found)
    if said:
        assert found.endswith("where the model was made for 8 x 8")

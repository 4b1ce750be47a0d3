"""Sums over observations equal numpy's, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primesvt.calibration import Moments, calibration_of

from ..families.drawn import SEEDS, examples


@examples(20)
@given(seed=SEEDS, channels=st.integers(1, 6), parts=st.lists(st.integers(1, 9), min_size=1))
def test_mean_and_covariance_are_numpys(seed: int, channels: int, parts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(5, 3, (count, channels)) for count in parts]
    moments = Moments(channels=channels)
    for part in rows:
        moments.add(torch.from_numpy(part))
    whole = np.concatenate(rows)
    assert moments.count == len(whole)
    np.testing.assert_allclose(moments.mean.numpy(), whole.mean(0), rtol=1e-12)
    expected = np.cov(whole.T, bias=True).reshape(channels, channels)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, rtol=1e-9, atol=1e-11)


@examples(15)
@given(seed=SEEDS, channels=st.integers(1, 5), batches=st.integers(1, 4))
def test_products_of_spikes_are_whole_numbers(seed: int, channels: int, batches: int) -> None:
    rng = np.random.default_rng(seed)
    spikes = rng.random((batches, 300, channels)) < 0.3
    moments = Moments(channels=channels)
    for part in spikes:
        moments.add(torch.from_numpy(part.astype(np.float32)))
    whole = spikes.reshape(-1, channels).astype(np.int64)
    assert moments.products.tolist() == (whole.T @ whole).tolist()
    assert moments.total.tolist() == whole.sum(0).tolist()


def test_small_differences_on_a_large_offset_are_kept() -> None:
    """In float32 products of values near 1000 would drown a variance of 0.25."""
    rows = torch.tensor([[1000.0], [1001.0]] * 500)
    moments = Moments(channels=1)
    moments.add(rows)
    assert moments.covariance.item() == pytest.approx(0.25, rel=1e-6)


def test_calibration_takes_tensors_batches_and_data_sets_alike() -> None:
    x = torch.arange(10.0)[:, None]
    data = torch.utils.data.TensorDataset(x, torch.zeros(10))
    kinds = [x, list(x.split(3)), iter(x.split(3)), data, [(part, 0) for part in x.split(3)]]
    for kind in kinds:
        found = calibration_of(kind, batch_size=4, limit=7)
        for _ in range(2):  # every pass gives the same
            assert torch.equal(torch.cat([batch[0] for batch in found]), x[:7])
        assert found.samples == 7
    with pytest.raises(ValueError, match="no inputs"):
        calibration_of([])


def test_the_digest_sees_every_value() -> None:
    x = torch.zeros(6, 2)
    digest = calibration_of(x).digest()
    assert digest == calibration_of(x.clone()).digest()
    x[5, 1] = 1e-7
    assert calibration_of(x).digest() != digest

"""Configurations that nobody published: they load from official names, and run on any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from primesvt.models import from_official, to_official
from primesvt.models.families import FAMILIES

from ..channels.firing import excite, margin, record
from .cases import CASES
from .drawn import NAMES, SEEDS, build, examples

families = pytest.mark.parametrize("case", CASES, ids=NAMES)


def images(case: Any, config: Any, data: st.DataObject, seed: int) -> torch.Tensor:
    """Three images, or samples of event frames, of any height and width."""
    frame = (config.in_channels, *data.draw(case.sizes(config)))
    steps = [data.draw(st.integers(1, 4))] if data.draw(st.booleans()) else []
    return torch.randn(3, *steps, *frame, generator=torch.Generator().manual_seed(seed)).double()


@families
@examples(9)
@given(data=st.data(), seed=SEEDS)
def test_they_load_with_what_tensors_do_not_tell(case: Any, data: Any, seed: int) -> None:
    config = data.draw(case.configs(depth=2))
    model = build(config, seed).double()
    x = images(case, config, data, seed)
    state = to_official(model)
    told = FAMILIES[case.family].infer(state)
    untold = {name: value for name, value in config.to_dict().items() if name not in told}
    del untold["family"]
    again = from_official(state, **untold).double().eval()
    assert again.config.family == case.family
    assert again.loaded.given.keys() == untold.keys()
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(again(x), logits)
    assert logits.shape == (3, config.num_classes)
    assert logits.isfinite().all()


@families
@examples(6)
@given(data=st.data(), seed=SEEDS)
def test_images_of_a_batch_do_not_matter_to_each_other(case: Any, data: Any, seed: int) -> None:
    """Unless the config says so."""
    config = data.draw(case.configs())
    model, x = build(config, seed).double(), images(case, config, data, seed)
    assume(excite(model, x, seed))
    currents, _, logits = record(model, x)
    assume(margin(model, currents) >= 1e-7)
    alone = torch.cat([record(model, image[None])[2] for image in x])
    if not config.batch_mixing:
        assert (alone - logits).abs().max() <= 1e-9 * max(1, float(logits.abs().max()))

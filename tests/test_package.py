"""The public names of the package."""

from __future__ import annotations

import contextlib
import importlib
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import primesvt
from primesvt._guard import Fault, guarded
from primesvt.evaluation.evaluator import outcomes

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", primesvt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(primesvt, name) is not None
    assert name in dir(primesvt)


def test_prune_stays_a_function_whatever_was_imported_before():
    importlib.import_module("primesvt.pruning.pipeline")
    assert callable(primesvt.prune)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        primesvt.prnue  # noqa: B018


class TestCalls:
    """What every public function is held to."""

    def test_random_states_are_as_before(self, monkeypatch):
        def draws(name):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            if name == "fails":
                raise ValueError("no")

        def states():
            return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

        call = guarded(draws, random_kept=True)
        for name in ("works", "fails"):
            random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
            with contextlib.suppress(ValueError):
                call(name)
            found = states()
            random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
            assert found == states()

    def test_which_functions_keep_it(self):
        model = primesvt.create_model("sdt_v2_digits")
        data = TensorDataset(torch.rand(8, 1, 8, 8), torch.arange(8))
        before = torch.get_rng_state()
        primesvt.trace(model, torch.rand(1, 1, 8, 8, generator=torch.Generator()))
        outcomes(model, data)
        primesvt.load_data("digits")
        assert torch.equal(before, torch.get_rng_state())
        primesvt.create_model("sdt_v2_digits")  # draws weights by the user's seed
        assert not torch.equal(before, torch.get_rng_state())

    def test_errors_of_ones_own_code_are_named_and_other_kinds_pass(self):
        class Stop(Exception):
            pass

        def fails(kind):
            raise kind("here")

        call = guarded(fails, random_kept=False)
        with pytest.raises(
            ValueError, match=r"test_package\.py, line \d+, raised KeyError"
        ) as told:
            call(KeyError)
        assert isinstance(told.value.__cause__, KeyError) and not isinstance(told.value, Fault)
        for kind in (Stop, OSError, TypeError):
            with pytest.raises(kind):
                call(kind)

    def test_an_error_within_the_package_is_a_fault_of_it(self, monkeypatch):
        from primesvt.models import forward

        monkeypatch.setattr(forward, "state_tensors", {}.__getitem__)
        call = guarded(forward.check_no_nan, random_kept=False)
        with pytest.raises(Fault, match="a fault of primesvt itself, KeyError: 'w'"):
            call("w")

    @pytest.mark.parametrize(
        ("call", "said"),
        [
            (lambda: primesvt.prune("nowhere"), "unknown model 'nowhere'"),
            (lambda: primesvt.prune("sdt_v2_15m"), "has no weights"),
            (lambda: primesvt.prune("sdt_v2_digits", seed=-1), "seed"),
            (lambda: primesvt.prune("sdt_v2_digits", device="meta"), "no device 'meta'"),
            (lambda: primesvt.prune("sdt_v2_digits", out="/proc/x"), "cannot write"),
            (lambda: primesvt.prune(nn.Linear(2, 2, device="meta"), data="digits"), "meta device"),
            (lambda: primesvt.create_model("sdt_v2_digits", time_steps=10**20), "at most 4096"),
            (lambda: primesvt.finetune("run", data="digits", batch_size=0), "batch_size is 0"),
            (lambda: primesvt.finetune("run", recipe={"learning_rate": float("inf")}), "finite"),
            (lambda: primesvt.load_data("digits", seed=-1), "seed is -1"),
            (lambda: primesvt.export("sdt_v2_digits", format="hub", push="../../x"), "NAME/MODEL"),
            (lambda: primesvt.export("sdt_v2_digits", "/proc/x.pt2"), "cannot write"),
        ],
    )
    def test_mistakes_are_one_line_before_any_work(self, call, said):
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)

    def test_a_name_can_be_pruned(self):
        result = primesvt.prune(
            "sdt_v2_digits",
            include=["*.block4_0.mlp.fc1"],
            rates=[0.5],
            preset="paper",
            verify=False,
            max_accuracy_drop=10,
            batch_size=450,
        )
        assert result.met and (result.config.model, result.config.data) == (
            "sdt_v2_digits",
            "digits",
        )
        with pytest.raises(TypeError, match="model is a int"):
            primesvt.prune(3)

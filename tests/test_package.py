"""The public names of the package."""

from __future__ import annotations

import importlib

import pytest

import primesvt

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

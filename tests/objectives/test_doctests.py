"""Every loss shows one example, and the example is true."""

import doctest
import importlib

import pytest

from discojax import objectives

MODULES = ["alignment", "baselines", "curves", "discovered", "reference_free", "registry"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    results = doctest.testmod(importlib.import_module(f"discojax.objectives.{module}"))
    assert results.failed == 0


@pytest.mark.parametrize("name", objectives.names())
def test_every_loss_has_an_example(name):
    function = objectives.get(name).function
    docstring = getattr(function, "func", function).__doc__
    assert f"{name}(" in docstring.partition(">>>")[2]

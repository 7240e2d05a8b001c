"""Inputs that every test of the objectives shares."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax import objectives

TRL = runpy.run_path(str(Path(__file__).with_name("trl_golden.py")))


@pytest.fixture
def x64():
    """Float64, for golden values that have more digits than float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def golden_rows() -> objectives.LogProbs:
    """Eight pairs, float64 NumPy."""
    rows = TRL["INPUTS"]["golden rows"]
    return objectives.LogProbs(*(np.asarray(rows[field]) for field in objectives.LogProbs._fields))


@pytest.fixture
def call():
    """The function of an objective on arrays as they are: `Objective` itself casts to float32."""

    def call(objective: objectives.Objective, logps: objectives.LogProbs, beta: float) -> jax.Array:
        given = dict(zip(objectives.ARGUMENTS, (*logps[:4], beta, *logps[4:], 0.0), strict=True))
        return objective.function(**{name: jnp.asarray(given[name]) for name in objective.arguments})

    return call


@pytest.fixture
def mean_and_gradient(call):
    """The mean loss over pairs, and its gradient in the four log-probabilities."""

    def mean_and_gradient(objective, logps, beta):
        def mean(four):
            return jnp.mean(call(objective, logps._replace(**four), beta))

        fields = objectives.LogProbs._fields[:4]
        return jax.value_and_grad(mean)({field: jnp.asarray(getattr(logps, field)) for field in fields})

    return mean_and_gradient

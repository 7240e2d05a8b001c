"""The curve of a loss over the margin."""

import jax
import numpy as np
import pytest

from discojax import objectives


def test_dpo_curve_is_the_logistic_loss():
    margins = np.linspace(-40, 40, 9)
    values, slopes = objectives.curve(objectives.get("dpo"), 0.1, margins)
    np.testing.assert_allclose(values, np.log1p(np.exp(-0.1 * margins)), rtol=1e-5)
    np.testing.assert_allclose(slopes, -0.1 / (1 + np.exp(0.1 * margins)), rtol=1e-5)


@pytest.mark.parametrize("name", objectives.names())
def test_slopes_are_the_derivative_of_values(name):
    objective = objectives.get(name)
    margins = np.array([-13.3, -2.1, 3.7, 16.9])
    step = 0.05
    values, slopes = objectives.curve(
        objective, 0.1, np.array([margins - step, margins, margins + step]).ravel()
    )
    below, _, above = values.reshape(3, 4)
    np.testing.assert_allclose(slopes[4:8], (above - below) / (2 * step), rtol=0.02, atol=2e-4)
    assert np.isfinite(slopes).all()


def test_a_curve_can_be_jitted():
    margins = np.linspace(-5, 5, 3)
    objective = objectives.get("aqfl")
    jitted = jax.jit(lambda m: objectives.curve(objective, 0.05, m))(margins)
    plain = objectives.curve(objective, 0.05, margins)
    np.testing.assert_allclose(jitted.values, plain.values, rtol=1e-6)
    np.testing.assert_allclose(jitted.slopes, plain.slopes, rtol=1e-5, atol=1e-7)

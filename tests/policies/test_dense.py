"""Dense layers: their gradients against those of the product they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.policies.dense import dense, weight_gradient


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (4, 9), (9, 4)])
def test_gradients_are_those_of_the_product(shape, inputs, outputs):
    layer = dense(inputs, outputs, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (*shape, inputs))
    weights = jax.random.normal(jax.random.key(2), (*shape, outputs))
    graph, state = nnx.split(layer)

    def ours(state, x):
        return jnp.sum(nnx.merge(graph, state)(x) * weights)

    def plain(state, x):
        return jnp.sum((x @ state["kernel"][...] + state["bias"][...]) * weights)

    found, expected = (jax.value_and_grad(f, argnums=(0, 1))(state, x) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 9), (9, 4)])
def test_a_gradient_in_bfloat16_is_added_up_in_float32(inputs, outputs):
    x, cotangent = (jnp.ones((1001, size), jnp.bfloat16) for size in (inputs, outputs))
    assert weight_gradient(x, cotangent).dtype == jnp.bfloat16
    exact = weight_gradient(x, cotangent, jnp.float32)
    assert exact.dtype == jnp.float32 and exact.shape == (inputs, outputs)
    np.testing.assert_array_equal(exact, 1001.0)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from discojax.population.optimizer import OptimizerConfig, apply, make_optimizer, schedule


@pytest.fixture(scope="module")
def factors():
    def factors(config, steps):
        every = jax.vmap(lambda step: schedule(config, step, jnp.int32(steps)))
        return np.asarray(jax.jit(every)(jnp.arange(steps)))

    return factors


def test_warmup_rises_along_a_line_and_the_cosine_falls_to_nothing(factors):
    ours = factors(OptimizerConfig(warmup=0.2, decay="cosine"), 10)
    falling = [0.5 * (1 + np.cos(np.pi * k / 9)) for k in range(9)]
    np.testing.assert_allclose(ours, [0.5, *falling], atol=1e-6)


def test_linear_and_constant(factors):
    np.testing.assert_allclose(factors(OptimizerConfig(warmup=0.5, decay="constant"), 4), [0.5, 1, 1, 1])
    np.testing.assert_allclose(
        factors(OptimizerConfig(warmup=0.5, decay="linear"), 4), [0.5, 1, 2 / 3, 1 / 3], atol=1e-6
    )


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    ("warmup", "steps"), [(0.0, 1), (0.0, 7), (0.1, 1), (1.0, 5), (0.3, 50), (0.15, 100)]
)
def test_every_factor_is_above_zero_and_one_is_reached_when_warm(factors, decay, warmup, steps):
    ours = factors(OptimizerConfig(warmup=warmup, decay=decay), steps)
    assert (ours > 0).all() and ours.max() == 1.0
    # In float32 0.3 * 50 and 0.15 * 100 are a little more than 15, which must not cost a step.
    warm = max(round(warmup * steps), 1)
    assert ours[warm - 1] == 1.0
    np.testing.assert_allclose(ours[:warm], np.arange(1, warm + 1) / warm, rtol=1e-6)


def test_a_trajectory_is_that_of_optax_adamw(factors):
    config = OptimizerConfig(b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, clip_norm=0.7, warmup=0.25)
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.ones(4)}

    def random(scale):
        return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), params)

    gradients = [random(10.0**-step) for step in range(8)]
    table = jnp.asarray(0.05 * factors(config, 8))
    theirs = optax.chain(
        optax.clip_by_global_norm(0.7),
        optax.adamw(lambda count: table[count], 0.8, 0.95, 1e-6, weight_decay=0.3),
    )
    ours = make_optimizer(config)

    @jax.jit
    def step_both(gradient, mine, my_state, other, other_state, rate):
        updates, my_state = ours.update(gradient, my_state, mine)
        mine = apply(config, mine, updates, rate)
        updates, other_state = theirs.update(gradient, other_state, other)
        return mine, my_state, optax.apply_updates(other, updates), other_state

    mine, other = params, params
    my_state, other_state = ours.init(params), theirs.init(params)
    for step, gradient in enumerate(gradients):
        mine, my_state, other, other_state = step_both(
            gradient, mine, my_state, other, other_state, table[step]
        )
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

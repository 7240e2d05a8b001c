"""A prompt read once for both of its completions gives what two readings give."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.policies.architecture import Rope
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.flops import forward_flops
from discojax.policies.logprobs import completion_logps, pair_logps

BASE = DecoderConfig(vocab_size=61, layers=2, width=16, heads=2, max_length=16)
STRUCTURES = {
    "learned positions": {},
    "rotary positions, grouped heads": {"positions": "rotary", "rope": Rope(), "kv_heads": 1},
    "a window": {"positions": "rotary", "rope": Rope(), "window": 3, "pattern": ("local", "global")},
    "scanned, two kinds of layer, rematerialised": {
        "positions": "rotary", "rope": Rope(), "window": 3, "pattern": ("local", "global"), "scan": True,
        "remat": "block",
    },
    "soft-caps": {"attention_softcap": 2.0, "logit_softcap": 3.0},
    "JAX's attention": {"attention": "xla"},
}  # fmt: skip
OTHERS = ("a window", "JAX's attention")  # the fast ones hold these parts too
TOKENS, PROMPTS = 8, 7


def pairs():
    """Ragged pairs; one fills all of its time, with a prompt longer than `time - tokens` would allow."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 61, (2, 5, 14)).astype(np.int32)
    prompts = np.array([1, 4, 7, 6, 2], np.int32)
    ids[1] = np.where(np.arange(14) < prompts[:, None], ids[0], ids[1])
    chosen, rejected = np.array([6, 1, 7, 8, 5], np.int32), np.array([8, 3, 1, 4, 5], np.int32)
    return ids[0], ids[1], prompts, chosen, rejected


def policy(changes):
    config = dataclasses.replace(BASE, **changes)
    graph, state = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), state))


def apart(policy, chosen, rejected, prompts, *lengths):
    sides = zip((chosen, rejected), lengths, strict=True)
    return jnp.stack([completion_logps(policy, ids, prompts, n, tokens=TOKENS) for ids, n in sides])


def value_and_gradient(function, policy):
    graph, params = nnx.split(policy)
    weights = jnp.array([[1.0], [-0.5]]) * jnp.arange(1, 6)

    @jax.jit
    def run(params):
        def total(params):
            logps = function(nnx.merge(graph, params), *pairs())
            return jnp.sum(weights * logps), logps

        return jax.value_and_grad(total, has_aux=True)(params)

    (_, logps), gradient = run(params)
    return logps, gradient


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHERS)) for name in STRUCTURES]
)
def test_values_and_gradients_are_those_of_two_readings(name):
    model = policy(STRUCTURES[name])
    together = functools.partial(pair_logps, tokens=TOKENS, prompts=PROMPTS)
    (ours, slope), (theirs, known) = (value_and_gradient(f, model) for f in (together, apart))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * float(jnp.abs(other).max()))


def test_a_completion_does_not_see_the_other_one():
    model = policy({})
    chosen, rejected, prompts, *lengths = pairs()
    run = jax.jit(functools.partial(pair_logps, tokens=TOKENS, prompts=PROMPTS))
    before = run(model, chosen, rejected, prompts, *lengths)
    changed = np.where(np.arange(14) < prompts[:, None], rejected, (rejected + 1) % 61)
    after = run(model, chosen, changed, prompts, *lengths)
    np.testing.assert_array_equal(before[0], after[0])
    assert (np.abs(before[1] - after[1]) > 1e-3).all()


def test_what_stands_after_a_prompt_is_not_seen_by_its_completions():
    model = policy({})
    chosen, rejected, prompts, *_ = pairs()
    ones = np.ones(5, np.int32)  # completions of one token: all else in the rows is padding
    run = jax.jit(functools.partial(pair_logps, tokens=TOKENS, prompts=PROMPTS))
    before = run(model, chosen, rejected, prompts, ones, ones)
    padding = np.arange(14) > prompts[:, None]
    after = run(model, np.where(padding, 3, chosen), np.where(padding, 5, rejected), prompts, ones, ones)
    np.testing.assert_array_equal(before, after)


def test_the_compiled_program_does_less_by_what_is_shared():
    model = policy({"max_length": 80, "width": 64, "layers": 3})
    ids, one = jnp.zeros((4, 72), jnp.int32), jnp.ones(4, jnp.int32)

    def flops(function, *arguments):
        cost = jax.jit(function).lower(model, *arguments).compile().cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    shared = flops(functools.partial(pair_logps, tokens=9, prompts=63), ids, ids, 60 * one, one, one)
    twice = 2 * flops(functools.partial(completion_logps, tokens=9), ids, 60 * one, one)
    count = functools.partial(forward_flops, model.config, predicted=0, causal=False)
    expected = count(sequences=4, time=63 + 16) / count(sequences=8, time=71)
    assert shared / twice == pytest.approx(expected, rel=0.1)
    assert expected < 0.6


def test_nothing_is_shared_where_that_would_be_more_to_read():
    model = policy({})
    arguments = pairs()
    text = str(jax.make_jaxpr(functools.partial(pair_logps, tokens=13))(model, *arguments))
    assert "5,37" not in text  # a row for a pair would be 13 + 2 * 12 tokens
    assert "10,13" in text

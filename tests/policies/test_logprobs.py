import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from discojax.policies import logprobs
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.logprobs import completion_hidden, completion_mask
from discojax.population import StepConfig, make_programs
from discojax.population.mesh import make_mesh

token_logps = jax.jit(logprobs.token_logps, static_argnames=("block", "softcap"))


@functools.partial(jax.jit, static_argnames="softcap")
def dense(hidden, head, targets, softcap=None):
    logits = hidden.astype(jnp.float32) @ head.astype(jnp.float32).T
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)[:, 0]


def inputs(tokens=13, width=8, vocab=37, seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = (rng.normal(size=(n, width)).astype(np.float32) for n in (tokens, vocab))
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(rng.integers(0, vocab, tokens), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def gradients(function, hidden, head, targets):
    weights = jnp.linspace(-1.0, 2.0, len(targets))
    return jax.grad(lambda h, w: jnp.sum(weights * function(h, w, targets)), argnums=(0, 1))(hidden, head)


@pytest.mark.parametrize("block", [1, 5, 1024])
def test_values_and_gradients_are_those_of_log_softmax(block):
    hidden, head, targets = inputs()

    def streamed(*arguments):
        return token_logps(*arguments, block=block)

    np.testing.assert_allclose(
        streamed(hidden, head, targets), dense(hidden, head, targets), rtol=1e-5, atol=1e-5
    )
    for ours, theirs in zip(
        gradients(streamed, hidden, head, targets), gradients(dense, hidden, head, targets), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_values_and_gradients_of_soft_capped_logits_are_those_of_log_softmax():
    hidden, head, targets = inputs()
    streamed, textbook = (functools.partial(f, softcap=2.0) for f in (token_logps, dense))
    np.testing.assert_allclose(
        streamed(hidden, head, targets, block=5), textbook(hidden, head, targets), rtol=1e-5, atol=1e-5
    )
    assert jnp.abs(textbook(hidden, head, targets) - dense(hidden, head, targets)).max() > 0.5
    for ours, theirs in zip(
        gradients(functools.partial(streamed, block=5), hidden, head, targets),
        gradients(textbook, hidden, head, targets),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_agree_with_finite_differences(softcap):
    hidden, head, targets = inputs(tokens=5, width=3, vocab=7)
    check_grads(
        lambda h, w: token_logps(h, w, targets, block=2, softcap=softcap),
        (hidden, head),
        order=1,
        modes=["rev"],
    )


def test_bfloat16_inputs_give_float32_log_probabilities():
    hidden, head, targets = inputs(width=64, vocab=500)
    low = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    ours = token_logps(*low, targets, block=4)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, dense(*low, targets), rtol=1e-4, atol=1e-4)
    rounded = (low[0] @ low[1].T).astype(jnp.float32)  # what logits in bfloat16 would have given
    worse = jnp.take_along_axis(jax.nn.log_softmax(rounded), targets[:, None], 1)[:, 0]
    assert jnp.abs(worse - dense(*low, targets)).max() > 1e-3
    for ours, theirs in zip(
        gradients(token_logps, *low, targets), gradients(dense, *low, targets), strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=0.02 * float(jnp.abs(theirs).max())
        )


def test_under_vmap_each_lane_has_its_own_head_and_gradient():
    lanes = [inputs(seed=seed) for seed in range(3)]
    stacked = [jnp.stack(parts) for parts in zip(*lanes, strict=True)]
    values = jax.vmap(token_logps)(*stacked)
    mapped = jax.vmap(lambda *lane: gradients(lambda *a: token_logps(*a, block=4), *lane))(*stacked)
    for lane, arguments in enumerate(lanes):
        np.testing.assert_allclose(values[lane], dense(*arguments), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(mapped, gradients(dense, *arguments), strict=True):
            np.testing.assert_allclose(ours[lane], theirs, rtol=1e-4, atol=1e-5)


def test_a_tied_embedding_gets_the_gradient_of_both_its_uses():
    _, embedding, targets = inputs(tokens=9)
    ids = jnp.roll(targets, 1)

    def loss(function, embedding):
        return jnp.sum(function(jnp.tanh(embedding[ids]), embedding, targets))

    ours, theirs = (jax.grad(loss, argnums=1)(f, embedding) for f in (token_logps, dense))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    only_as_head = jax.grad(lambda head: jnp.sum(dense(jnp.tanh(embedding[ids]), head, targets)))(embedding)
    assert jnp.abs(ours - only_as_head).max() > 0.1


def test_memory_of_many_lanes_at_a_large_vocabulary_is_an_eighth_of_the_dense_form():
    """In blocks as long as the engine makes them for such a step."""
    lanes, tokens, width, vocab = 32, 512, 64, 50_257  # 8 pairs of 32 completion tokens each
    config = DecoderConfig(vocab_size=vocab, layers=1, width=width, heads=1, max_length=64)
    graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    step = StepConfig(batch=8, implementation="vmap")
    mesh = make_mesh(1, among=jax.devices()[:1])
    block = make_programs(graph, params, step, lanes=lanes, tokens=32, mesh=mesh).config.block

    def temporary(function):
        def loss(hidden, head, targets):
            return jnp.sum(jax.vmap(function)(hidden, head, targets))

        shapes = (
            jax.ShapeDtypeStruct((lanes, tokens, width), jnp.float32),
            jax.ShapeDtypeStruct((lanes, vocab, width), jnp.float32),
            jax.ShapeDtypeStruct((lanes, tokens), jnp.int32),
        )
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def streamed(hidden, head, targets):
        return token_logps(hidden, head, targets, block=block)

    logits = lanes * tokens * vocab * 4
    assert temporary(dense) >= logits  # else the comparison says nothing
    assert temporary(streamed) * 8 <= temporary(dense)


def test_completion_mask_comes_from_lengths():
    mask = completion_mask(jnp.array([0, 2, 3]), 3)
    np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert mask.dtype == jnp.float32


def test_the_first_completion_token_is_predicted_by_the_last_prompt_token(policy, rows, hidden):
    ids, prompts, completions = rows
    predicting, targets = jax.jit(completion_hidden, static_argnums=3)(policy, ids, prompts, 8)
    every = np.asarray(hidden(policy, ids))
    for row in range(len(ids)):
        for token in range(completions[row]):
            place = prompts[row] + token
            assert targets[row, token] == ids[row, place]
            np.testing.assert_allclose(predicting[row, token], every[row, place - 1], atol=1e-5)


def test_the_sum_is_over_the_completion_and_nothing_else(policy, rows, dense_logps, summed):
    ids, prompts, completions = rows
    every = np.asarray(dense_logps(policy, ids))
    expected = [every[i, p : p + c].sum() for i, (p, c) in enumerate(zip(prompts, completions, strict=True))]
    ours = summed(policy, ids, prompts, completions, tokens=8, block=7)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    later = np.roll(every, -1, axis=1)
    shifted = [later[i, p : p + c].sum() for i, (p, c) in enumerate(zip(prompts, completions, strict=True))]
    assert np.abs(np.asarray(ours) - shifted).min() > 0.01  # an off-by-one would be seen


def test_what_follows_a_completion_changes_nothing(policy, rows, summed):
    ids, prompts, completions = rows
    before = summed(policy, ids, prompts, completions, tokens=8)
    after = ids.copy()
    for row, end in enumerate(prompts + completions):
        after[row, end:] = 3
    np.testing.assert_array_equal(before, summed(policy, after, prompts, completions, tokens=8))


@pytest.mark.parametrize(("padding", "tokens"), [(1, 8), (8, 23)])
def test_the_amount_of_padding_changes_nothing(policy, rows, summed, padding, tokens):
    ids, prompts, completions = rows
    padded = np.pad(ids, ((0, 0), (0, padding)))
    np.testing.assert_allclose(
        summed(policy, padded, prompts, completions, tokens=tokens),
        summed(policy, ids, prompts, completions, tokens=8),
        atol=1e-4,
    )


def test_a_bfloat16_policy_is_summed_in_float32(policy, rows, summed):
    ids, prompts, completions = rows
    graph, params = nnx.split(policy)
    low = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    ours = summed(low, ids, prompts, completions, tokens=8)
    assert ours.dtype == jnp.float32
    hidden, targets = jax.jit(completion_hidden, static_argnums=3)(low, ids, prompts, 8)
    tokens = np.asarray(jax.vmap(dense, (0, None, 0))(hidden, low.head, targets))
    expected = [tokens[row, :n].sum() for row, n in enumerate(completions)]
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert not np.array_equal(ours, ours.astype(jnp.bfloat16))


def test_gradients_of_a_completion_are_those_of_the_dense_form(policy, rows):
    ids, prompts, completions = rows
    graph, params = nnx.split(policy)
    places = np.arange(ids.shape[1] - 1)[None]
    mask = (places >= prompts[:, None] - 1) & (places < (prompts + completions)[:, None] - 1)

    def textbook(params):
        policy = nnx.merge(graph, params)
        log_probabilities = jax.nn.log_softmax(policy.hidden(ids) @ policy.head.T)[:, :-1]
        picked = jnp.take_along_axis(log_probabilities, jnp.asarray(ids)[:, 1:, None], -1)[..., 0]
        return jnp.sum(jnp.sum(picked * mask, -1) ** 2)

    def ours(params):
        policy = nnx.merge(graph, params)
        return jnp.sum(logprobs.completion_logps(policy, ids, prompts, completions, tokens=8, block=16) ** 2)

    mine, theirs = jax.jit(jax.grad(ours))(params), jax.jit(jax.grad(textbook))(params)
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))

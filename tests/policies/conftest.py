"""A policy small enough to check by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.logprobs import completion_logps

CONFIG = DecoderConfig(vocab_size=61, layers=1, width=16, heads=2, max_length=24)


@pytest.fixture(scope="session")
def make_policy():
    """`make_policy(seed)`: a decoder with weights so large that its choices differ."""

    def make(seed: int, layers: int = 1) -> Decoder:
        config = dataclasses.replace(CONFIG, layers=layers)
        graph, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
        rng = np.random.default_rng(seed)

        def weights(shape):
            drawn = rng.normal(size=shape.shape).astype(np.float32)
            return jnp.asarray(0.4 * drawn if len(shape.shape) == 2 else 1.0 + 0.1 * drawn)

        return nnx.merge(graph, jax.tree.map(weights, shapes))

    return make


@pytest.fixture(scope="session")
def policy(make_policy):
    return make_policy(0)


@pytest.fixture(scope="session")
def reference(make_policy):
    return make_policy(1)


@pytest.fixture(scope="session")
def rows():
    """Ragged prompts and completions, padded on the right with a token that is also a word."""
    rng = np.random.default_rng(0)
    prompts = np.array([1, 4, 7, 5, 2], np.int32)
    completions = np.array([6, 1, 8, 3, 5], np.int32)
    ids = rng.integers(0, CONFIG.vocab_size, (5, 16)).astype(np.int32)
    return ids, prompts, completions


@pytest.fixture(scope="session")
def dense_logps():
    """`[batch, time]` log-probabilities of each token by the textbook; that of token 0 is zero."""

    def dense(policy, ids):
        logits = policy.hidden(ids) @ policy.head.T
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))[:, :-1]
        picked = jnp.take_along_axis(log_probabilities, ids[:, 1:, None], -1)[..., 0]
        return jnp.pad(picked, ((0, 0), (1, 0)))

    return jax.jit(dense)


@pytest.fixture(scope="session")
def hidden():
    return jax.jit(lambda policy, ids: policy.hidden(ids))


@pytest.fixture(scope="session")
def summed():
    """`completion_logps`, compiled once for a shape."""
    return jax.jit(completion_logps, static_argnames=("tokens", "block"))

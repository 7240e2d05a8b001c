"""The encoder: padding and length; agreement with PyTorch is in `pretrained/test_parity.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.errors import UserError
from discojax.policies.encoder import Encoder, EncoderConfig

CONFIG = EncoderConfig(vocab_size=31, labels=3, layers=2, width=16, heads=2, hidden=24, max_length=12)
KINDS = {
    "distilbert": CONFIG,
    "roberta": dataclasses.replace(CONFIG, first_position=2, types=1, pooler="tanh", norm_epsilon=1e-5),
}


@pytest.fixture(scope="module", params=KINDS)
def encoder(request):
    """Random weights, drawn by NumPy: nothing to compile."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Encoder(KINDS[request.param], rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape).astype(np.float32), shapes))


@pytest.fixture(scope="module")
def logits():
    return jax.jit(
        lambda encoder, ids, lengths: encoder(ids, lengths),
        compiler_options={"xla_backend_optimization_level": 0},
    )


IDS = np.random.default_rng(0).integers(3, 31, (4, 9)).astype(np.int32)
LENGTHS = np.array([9, 4, 1, 6], np.int32)


def test_padding_changes_nothing(encoder, logits):
    expected = logits(encoder, IDS, LENGTHS)
    inside = np.arange(9) < LENGTHS[:, None]
    other = np.where(inside, IDS, 7)
    np.testing.assert_allclose(logits(encoder, other, LENGTHS), expected, rtol=1e-6)
    longer = np.pad(IDS, ((0, 0), (0, 3)), constant_values=5)
    np.testing.assert_allclose(logits(encoder, longer, LENGTHS), expected, atol=1e-6)
    alone = logits(encoder, IDS[1:2, :4], LENGTHS[1:2])  # no padding at all
    np.testing.assert_allclose(alone, expected[1:2], atol=1e-6)


def test_every_token_inside_counts(encoder, logits):
    expected = np.asarray(logits(encoder, IDS, LENGTHS))
    for row, length in enumerate(LENGTHS):
        other = IDS.copy()
        other[row, length - 1] = (IDS[row, length - 1] + 1) % 31
        changed = np.abs(np.asarray(logits(encoder, other, LENGTHS)) - expected).max(axis=1) > 1e-4
        assert changed.tolist() == [i == row for i in range(4)]


def test_logits_are_float32_whatever_the_parameters(encoder, logits):
    expected = logits(encoder, IDS, LENGTHS)
    graph, params = nnx.split(encoder)
    half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert jax.eval_shape(lambda m: m.hidden(IDS, LENGTHS), half).dtype == jnp.bfloat16
    narrow = logits(half, IDS, LENGTHS)
    assert narrow.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, atol=0.1)


def test_a_text_too_long_is_refused(encoder):
    with pytest.raises(UserError, match="13 tokens do not fit into this encoder's 12 positions"):
        encoder(np.zeros((1, 13), np.int32), np.array([13], np.int32))

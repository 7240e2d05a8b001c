import jax
import numpy as np
import pytest
from flax import nnx

from discojax.policies import sft
from discojax.policies.decoder import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def corpus():
    """Sixty texts, each counting upwards from somewhere, of 3 to 10 tokens."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(3, 20, 60), rng.integers(3, 11, 60).astype(np.int32)
    ids = starts[:, None] + np.arange(10)
    return np.where(np.arange(10) < lengths[:, None], ids, 0).astype(np.int32), lengths


@pytest.fixture(scope="module")
def start():
    config = DecoderConfig(vocab_size=32, layers=1, width=16, heads=2, max_length=12)
    return nnx.split(Decoder(config, rngs=nnx.Rngs(0)))


CONFIG = sft.SftConfig(steps=100, batch=16)


@pytest.fixture(scope="module")
def trained(start, corpus):
    told: list[tuple[int, float]] = []
    result = sft.train(
        *start, *corpus, config=CONFIG, seed=0, progress=lambda step, loss: told.append((step, loss))
    )
    return *result, told


@pytest.fixture(scope="module")
def mean_loss(start):
    return jax.jit(lambda params, ids, lengths: sft.mean_loss(start[0], params, ids, lengths))


def test_loss_falls_from_that_of_guessing_to_that_of_knowing(trained, start, corpus, mean_loss):
    params, losses, _ = trained
    assert abs(float(mean_loss(start[1], *corpus)) - np.log(32)) < 0.2
    assert losses[-1] < 0.5 * losses[0]
    assert float(mean_loss(params, *corpus)) < 1.3


def test_progress_is_told_in_steps_up_to_the_last(trained):
    _, losses, told = trained
    assert [step for step, _ in told] == list(range(10, 101, 10))
    assert [loss for _, loss in told] == losses


def test_loss_is_the_mean_over_every_token_after_the_first(start, corpus, mean_loss):
    graph, params = start
    ids, lengths = corpus
    policy = nnx.merge(graph, params)
    logits = np.asarray(jax.jit(lambda ids: policy.hidden(ids) @ policy.head.T)(ids), np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = [
        logps[row, place - 1, ids[row, place]]
        for row, length in enumerate(lengths)
        for place in range(1, length)
    ]
    np.testing.assert_allclose(mean_loss(params, ids, lengths), -np.mean(each), rtol=1e-5)


def test_padding_is_not_learnt_from(trained, corpus, mean_loss):
    ids, lengths = corpus
    other = np.where(np.arange(10) < lengths[:, None], ids, 29)
    assert not np.array_equal(ids, other)
    assert float(mean_loss(trained[0], ids, lengths)) == float(mean_loss(trained[0], other, lengths))
    more = np.pad(ids, ((0, 0), (0, 2)))
    np.testing.assert_allclose(
        mean_loss(trained[0], more, lengths), mean_loss(trained[0], ids, lengths), rtol=1e-5
    )


def test_the_seed_decides_the_order():
    one, same, other = (sft._order(seed, texts=60, batch=16, steps=40) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_every_epoch_is_a_permutation():
    order = sft._order(3, texts=12, batch=4, steps=7)
    assert order.shape == (7, 4)
    for epoch in (order[:3], order[3:6]):
        assert sorted(epoch.ravel()) == list(range(12))
    assert not np.array_equal(order[:3], order[3:6])

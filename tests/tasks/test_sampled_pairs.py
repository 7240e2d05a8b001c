from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from discojax.errors import UserError
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.tasks.sampled_pairs import sample_pairs
from discojax.tasks.types import Prompts, SamplingConfig

BOS, EOS, PAD = 1, 2, 0
SAMPLING = SamplingConfig(tokens=6, eos_id=EOS, pad_id=PAD)


@pytest.fixture(scope="module")
def policy():
    config = DecoderConfig(vocab_size=24, layers=1, width=16, heads=2, max_length=12)
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    policy = nnx.merge(graph, params)
    # It never writes <bos>, as a trained one does not: the stream points one way, that token the other.
    policy.positions.embedding[...] = policy.positions.embedding[...].at[:, 0].add(10.0)
    policy.embedding.embedding[...] = policy.embedding.embedding[...].at[BOS, 0].set(-10.0)
    return nnx.split(policy)


@pytest.fixture(scope="module")
def prompts():
    """More than are sampled at a time, and no multiple of it."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, 300).astype(np.int32)
    ids = rng.integers(3, 24, (300, 5)).astype(np.int32)
    ids[:, 0] = BOS
    return Prompts(np.where(np.arange(5) < lengths[:, None], ids, PAD), lengths)


def decode(rows):
    return ["".join(f" {int(token)}" for token in row) for row in rows]


def logit(prompts, completions):
    """Likes even tokens and dislikes odd ones."""
    texts = map(str.__add__, prompts, completions)
    return np.array(
        [sum(1 if int(token) % 2 == 0 else -1 for token in text.split()) for text in texts], float
    )


@pytest.fixture(scope="module")
def pairs_of(policy, prompts):
    def build(**settings):
        settings = {"config": SAMPLING, "decode": decode, "logit": logit, "seed": 0} | settings
        return sample_pairs(*policy, prompts, **settings)

    return build


@pytest.fixture(scope="module")
def built(pairs_of):
    told: list[tuple[int, int]] = []
    return *pairs_of(progress=lambda done, total: told.append((done, total))), told


def side(pairs, which):
    ids, lengths = getattr(pairs, f"{which}_ids"), getattr(pairs, f"{which}_length")
    starts = pairs.prompt_length
    return [row[a : a + n] for row, a, n in zip(ids, starts, lengths, strict=True)]


def rewards(pairs, which):
    ends = pairs.prompt_length + getattr(pairs, f"{which}_length")
    texts = decode([row[:end] for row, end in zip(getattr(pairs, f"{which}_ids"), ends, strict=True)])
    return logit([""] * len(texts), texts)


def test_pairs_are_completions_of_the_prompts_they_are_said_to_be(built, prompts):
    pairs, dropped, _ = built
    assert len(pairs.prompt_length) + dropped.total == 300 and len(pairs.prompt_length) > 200
    for row, source in enumerate(dropped.rows):
        length = prompts.lengths[source]
        assert pairs.prompt_length[row] == length
        for ids in (pairs.chosen_ids[row], pairs.rejected_ids[row]):
            np.testing.assert_array_equal(ids[:length], prompts.ids[source, :length])
            assert (ids == BOS).sum() == 1 and ids[0] == BOS


@pytest.mark.parametrize("which", ["chosen", "rejected"])
def test_a_completion_ends_where_it_was_sampled_to_end(built, which):
    pairs, _, _ = built
    completions = side(pairs, which)
    assert all(1 <= len(tokens) <= 6 and EOS not in tokens[:-1] for tokens in completions)
    ended = [tokens[-1] == EOS for tokens in completions]
    assert any(ended) and not all(ended)  # no end is added to one that the limit stopped
    assert all(len(tokens) == 6 or tokens[-1] == EOS for tokens in completions)


def test_progress_is_told_up_to_all_completions(built):
    told = built[2]
    assert [done for done, _ in told] == [256, 300, 556, 600]
    assert {total for _, total in told} == {600}


def test_labels_are_bradley_and_terrys(pairs_of, built):
    for temperature, (pairs, *_) in ((1.0, built), (4.0, pairs_of(label_temperature=4.0))):
        gap = rewards(pairs, "chosen") - rewards(pairs, "rejected")
        right, known = gap > 0, gap != 0
        expected = expit(np.abs(gap[known]) / temperature)
        error = np.sqrt((expected * (1 - expected)).sum()) / known.sum()
        assert abs(right[known].mean() - expected.mean()) < 4 * error
        assert 0.55 < expected.mean() < 1 - 3 * error  # neither certain nor a coin: it can be told


def test_of_more_completions_the_two_furthest_apart_make_the_pair_in_their_order(pairs_of, built):
    four, _ = pairs_of(label_temperature=1e-6, completions=4)
    ours, theirs = (rewards(pairs, "chosen") - rewards(pairs, "rejected") for pairs in (four, built[0]))
    assert (ours >= 0).all()  # such labels are certain
    gaps = [np.abs(theirs).mean(), ours.mean()]
    # Of four normal draws the range is 2.06 deviations, of two it is 1.13, and more without equal ones.
    assert 1.3 < gaps[1] / gaps[0] < 2.3


def test_the_same_seed_gives_the_same_pairs(pairs_of, built):
    for one, other in zip(jax.tree.leaves(pairs_of()[0]), jax.tree.leaves(built[0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_seed_repeats_another_ones_draws(pairs_of, built):
    """Completion k of seed s must not be completion k' of seed s': pairs would share their texts."""
    texts = [
        {tuple(tokens) for which in ("chosen", "rejected") for tokens in side(pairs, which)}
        for pairs in (built[0], pairs_of(seed=1)[0])
    ]
    long = [{text for text in found if len(text) == 6} for found in texts]
    assert len(long[0] & long[1]) < 0.02 * len(long[0])


def test_one_completion_is_no_pair(pairs_of):
    with pytest.raises(UserError, match="task.completions must be at least 2, not 1"):
        pairs_of(completions=1)


@pytest.mark.parametrize("left_out", [{"top_k": 1}, {"top_p": 1e-6}])
def test_where_one_token_is_left_all_completions_of_a_prompt_are_one(left_out, pairs_of):
    pairs, dropped = pairs_of(config=replace(SAMPLING, **left_out))
    assert len(pairs.prompt_length) == 0 and dropped.identical == 300


def test_settings_that_leave_nothing_out_change_no_content_hash():
    old = {"tokens": 6, "eos_id": EOS, "pad_id": PAD, "temperature": 1.0}
    assert SAMPLING.content() == old
    assert replace(SAMPLING, top_k=3).content() == {**old, "top_k": 3}
    assert replace(SAMPLING, top_p=0.9).content() == {**old, "top_p": 0.9}

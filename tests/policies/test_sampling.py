import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from discojax.errors import UserError
from discojax.policies import sampling

TOKENS, EOS, PAD = 9, 7, 0
choose = jax.jit(sampling.choose, static_argnums=2)
SETTINGS = ("tokens", "eos_id", "pad_id", "temperature", "top_k", "top_p")
sample = jax.jit(sampling.sample, static_argnames=SETTINGS)


@pytest.fixture(scope="module")
def prompts(rows):
    ids, lengths, _ = rows
    return ids[:, :7], lengths


@pytest.fixture(scope="module")
def draw(policy, prompts):
    def draw(ids=prompts[0], lengths=prompts[1], seed=3, temperature=1.0, top_k=0, top_p=1.0):
        settings = {"tokens": TOKENS, "eos_id": EOS, "pad_id": PAD, "temperature": temperature}
        settings |= {"top_k": top_k, "top_p": top_p}
        return jax.tree.map(np.asarray, sample(policy, ids, lengths, jax.random.key(seed), **settings))

    return draw


def kept(logits, top_k, top_p):
    """The likeliest tokens of one row, by the definition: one after another until there are enough."""
    probabilities = np.exp(np.asarray(logits, np.float64))
    order = np.argsort(-probabilities)[: top_k or None]
    mass, chosen = probabilities[order].sum(), []
    for token in order:
        if sum(probabilities[chosen]) >= top_p * mass:
            break
        chosen.append(token)
    return np.where(np.isin(np.arange(len(logits)), chosen), logits, -np.inf).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 9, 1.0), (1.3, 20, 0.8)]
)
def test_samples_are_those_of_a_plain_loop_without_a_cache(
    policy, prompts, hidden, draw, temperature, top_k, top_p
):
    ids, lengths = prompts
    ours = draw(temperature=temperature, top_k=top_k, top_p=top_p)
    for row, length in enumerate(lengths):
        uniforms = jax.random.uniform(jax.random.fold_in(jax.random.key(3), row), (TOKENS,))
        text = list(ids[row, :length])
        for step in range(TOKENS):
            padded = np.full((1, 16), 5, np.int32)
            padded[0, : len(text)] = text
            logits = hidden(policy, padded)[:, len(text) - 1] @ policy.head.T
            if temperature:
                logits = kept(logits[0] / temperature, top_k, top_p)[None]
            text.append(int(choose(logits, uniforms[step : step + 1], 1.0 if temperature else 0)[0]))
            if text[-1] == EOS:
                break
        assert ours.completion_lengths[row] == len(text) - length
        assert ours.ids[row].tolist() == text + [PAD] * (7 + TOKENS - len(text))


def test_a_completion_ends_with_its_end_of_sequence_counted_once(draw, prompts):
    _, lengths = prompts
    ended = 0
    for seed in range(30):
        samples = draw(seed=seed)
        for row, start, length in zip(samples.ids, lengths, samples.completion_lengths, strict=True):
            completion, rest = row[start : start + length], row[start + length :]
            assert 1 <= length <= TOKENS
            assert (rest == PAD).all()
            assert EOS not in completion[:-1]
            assert length == TOKENS or completion[-1] == EOS
            ended += length < TOKENS
    assert 5 < ended < 145  # both kinds were seen


def test_a_row_does_not_depend_on_the_others(draw, prompts):
    ids, lengths = prompts
    others, shorter = (ids + 11) % 61, lengths[::-1].copy()
    others[1], shorter[1] = ids[1], lengths[1]
    ours, theirs = draw(), draw(others, shorter)
    assert not np.array_equal(ours.ids[0], theirs.ids[0])
    np.testing.assert_array_equal(ours.ids[1], theirs.ids[1])
    np.testing.assert_array_equal(draw(ids[:2], lengths[:2]).ids, ours.ids[:2])


def test_what_follows_a_prompt_is_not_read(draw, prompts):
    ids, lengths = prompts
    padded = np.where(np.arange(7) < lengths[:, None], ids, 60)
    np.testing.assert_array_equal(draw(padded).ids, draw().ids)


def test_two_policies_are_given_the_same_draws(policy, make_policy, prompts):
    ids, lengths = prompts
    ids, lengths = np.tile(ids, (20, 1)), np.tile(lengths, 20)

    def first(policy, seed):
        settings = {"tokens": 1, "eos_id": EOS, "temperature": 1.0}
        samples = sample(policy, ids, lengths, jax.random.key(seed), **settings)
        return np.asarray(samples.ids)[np.arange(len(ids)), lengths]

    near = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, policy, make_policy(2))
    agreement = (first(policy, 0) == first(near, 0)).mean()
    assert agreement > 0.75 > 0.5 > (first(policy, 0) == first(near, 1)).mean()
    assert agreement < 1.0  # they are two policies


def test_completions_that_would_leave_the_positions_are_refused(policy, prompts):
    with pytest.raises(UserError, match="27 tokens do not fit"):
        sample(policy, *prompts, jax.random.key(0), tokens=20, eos_id=EOS)


@pytest.mark.parametrize(("vocab", "temperature"), [(2, 1.0), (16, 0.5), (61, 1.0), (61, 1.7)])
def test_choose_draws_from_the_softmax(vocab, temperature):
    logits = np.random.default_rng(vocab).normal(size=vocab).astype(np.float32)
    uniforms = jax.random.uniform(jax.random.key(vocab), (20_000,))
    drawn = choose(jnp.broadcast_to(logits, (20_000, vocab)), uniforms, temperature)
    counts = np.bincount(drawn, minlength=vocab)
    expected = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
    expected *= counts.sum() / expected.sum()
    assert len(counts) == vocab
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_choose_never_draws_a_token_of_no_weight(seed):
    rng = np.random.default_rng(seed)
    vocab, rows = 61, 4096
    logits = rng.normal(size=(rows, vocab)).astype(np.float32) * 4
    possible = rng.random((rows, vocab)) < 0.3
    possible[:, rng.integers(0, vocab)] = True
    logits[~possible] = -np.inf
    # Draws exactly at a border between two tokens, or next to it: where rounding would tell.
    ends = np.cumsum(np.asarray(jax.nn.softmax(logits)), axis=1, dtype=np.float32)
    borders = ends[np.arange(rows), rng.integers(0, vocab, rows)]
    for uniforms in (borders, np.nextafter(borders, 0), np.nextafter(borders, 1), 0 * borders):
        drawn = np.asarray(choose(logits, np.minimum(uniforms, np.float32(1 - 2**-24)), 1.0))
        assert possible[np.arange(rows), drawn].all()


def test_the_extremes_of_a_draw_are_the_first_and_last_possible_tokens():
    logits = np.full((2, 61), -np.inf, np.float32)
    logits[:, [9, 33, 52]] = 0.0
    uniforms = np.array([0.0, 1 - 2**-24], np.float32)
    np.testing.assert_array_equal(choose(logits, uniforms, 1.0), [9, 52])


def test_temperature_zero_is_greedy():
    logits = np.random.default_rng(0).normal(size=(50, 61)).astype(np.float32)
    uniforms = np.random.default_rng(1).random(50).astype(np.float32)
    np.testing.assert_array_equal(choose(logits, uniforms, 0), logits.argmax(1))
    np.testing.assert_array_equal(choose(logits, uniforms, 1e-4), logits.argmax(1))


def test_large_logits_do_not_overflow():
    logits = np.array([[3e4, 3e4 - 1.0, -3e4]], np.float32)
    assert int(choose(logits, np.array([0.2], np.float32), 1.0)[0]) == 0
    assert int(choose(logits, np.array([0.99], np.float32), 1.0)[0]) == 1


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (5, 1.0), (0, 0.5), (30, 0.9), (0, 1e-6), (61, 1.0)])
def test_the_likeliest_tokens_are_those_of_the_definition(top_k, top_p):
    logits = np.random.default_rng(5).normal(size=(40, 61)).astype(np.float32) * 2
    ours = np.asarray(sampling.likeliest(logits, top_k, top_p))
    np.testing.assert_array_equal(ours, [kept(row, top_k, top_p) for row in logits])
    assert (np.isfinite(ours).sum(1) >= 1).all()


def test_buckets_hold_every_prompt_once_and_are_as_wide_as_their_longest():
    lengths = np.random.default_rng(0).integers(1, 40, 101)
    ids = np.where(np.arange(45) < lengths[:, None], np.arange(101)[:, None], -1)
    buckets = sampling.length_buckets(ids, lengths, most=4, multiple=8)
    assert 1 < len(buckets) <= 4
    assert sorted(row for bucket in buckets for row in bucket.rows) == list(range(101))
    for bucket in buckets:
        width = bucket.ids.shape[1]
        assert bucket.lengths.max() <= width and (width % 8 == 0 or width == lengths.max())
        np.testing.assert_array_equal(bucket.lengths, lengths[bucket.rows])
        np.testing.assert_array_equal(bucket.ids, ids[bucket.rows, :width])


def test_prompts_of_like_lengths_are_not_divided():
    lengths = np.arange(1, 30)
    (bucket,) = sampling.length_buckets(np.zeros((29, 64), int), lengths)
    assert bucket.ids.shape == (29, 29)

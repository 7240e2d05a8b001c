import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax.policies import divergence, sampling

completion_divergence = jax.jit(divergence.completion_divergence, static_argnames=("tokens", "block"))
sample = jax.jit(sampling.sample, static_argnames=("tokens", "eos_id"))


def distributions(hidden, policy, ids):
    """float64 `[batch, time, vocab]` log-probabilities of the next token."""
    logits = np.asarray(hidden(policy, ids) @ policy.head.T, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("block", [3, 1024])
def test_both_divergences_are_those_of_whole_distributions(policy, reference, rows, hidden, block):
    ids, prompts, completions = rows
    p, q = (distributions(hidden, which, ids) for which in (policy, reference))
    forward, backward = (np.exp(p) * (p - q)).sum(-1), (np.exp(q) * (q - p)).sum(-1)
    ours = completion_divergence(policy, reference, ids, prompts, completions, tokens=8, block=block)
    for row, (start, length) in enumerate(zip(prompts, completions, strict=True)):
        predicting = slice(start - 1, start - 1 + length)
        np.testing.assert_allclose(ours.sequence[row], forward[row, predicting].sum(), rtol=1e-4)
        np.testing.assert_allclose(ours.reverse_per_token[row], backward[row, predicting].mean(), rtol=1e-4)


def test_a_policy_does_not_diverge_from_itself(policy, rows):
    ids, prompts, completions = rows
    ours = completion_divergence(policy, policy, ids, prompts, completions, tokens=8)
    np.testing.assert_array_equal(ours, np.zeros((2, 5)))


def test_prompts_and_padding_do_not_count(policy, reference, rows):
    ids, prompts, completions = rows
    none = completion_divergence(policy, reference, ids, prompts, 0 * completions, tokens=8)
    np.testing.assert_array_equal(none, np.zeros((2, 5)))
    after = np.where(np.arange(16) >= (prompts + completions)[:, None], 3, ids)
    np.testing.assert_array_equal(
        completion_divergence(policy, reference, after, prompts, completions, tokens=8),
        completion_divergence(policy, reference, ids, prompts, completions, tokens=8),
    )


def test_over_samples_its_mean_is_the_divergence_of_sequences(policy, make_policy, hidden, summed):
    """Two tokens of a vocabulary of 61: every sequence can be enumerated."""
    reference = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, policy, make_policy(5))
    prompt, eos, vocab = [4, 9, 31], 12, 61
    after = np.array([[*prompt, token] for token in range(vocab)], np.int32)
    p, q = (distributions(hidden, which, after) for which in (policy, reference))
    first_p, first_q, then_p, then_q = p[0, 2], q[0, 2], p[:, 3], q[:, 3]
    then = (np.exp(then_p) * (then_p - then_q)).sum(-1)
    then[eos] = 0.0  # a completion that has ended has no second token
    exact = (np.exp(first_p) * (first_p - first_q + then)).sum()

    count = 4000
    prompts = np.tile(np.array(prompt, np.int32), (count, 1))
    lengths = np.full(count, 3, np.int32)
    samples = sample(policy, prompts, lengths, jax.random.key(0), tokens=2, eos_id=eos)
    ours = completion_divergence(
        policy, reference, samples.ids, lengths, samples.completion_lengths, tokens=2
    )
    ratios = [
        summed(which, samples.ids, lengths, samples.completion_lengths, tokens=2)
        for which in (policy, reference)
    ]
    log_ratio = np.asarray(ratios[0] - ratios[1])
    for estimate in (np.asarray(ours.sequence), log_ratio):
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / count**0.5
    assert exact > 10 * log_ratio.std() / count**0.5  # or the test could not fail
    assert np.asarray(ours.sequence).std() < log_ratio.std()


def test_bfloat16_policies_are_compared_in_float32(policy, reference, rows):
    ids, prompts, completions = rows
    low = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), which) for which in (policy, reference)]
    ours = completion_divergence(*low, ids, prompts, completions, tokens=8)
    assert ours.sequence.dtype == ours.reverse_per_token.dtype == jnp.float32
    full = completion_divergence(policy, reference, ids, prompts, completions, tokens=8)
    np.testing.assert_allclose(ours.sequence, full.sequence, rtol=0.1)

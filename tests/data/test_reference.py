import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from discojax.data import reference
from discojax.data.pairs import Pairs
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.logprobs import completion_logps

TOKENS = 6


def make_policy(heads=2):
    config = DecoderConfig(vocab_size=40, layers=1, width=16, heads=heads, max_length=12)
    return nnx.split(Decoder(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def pairs():
    """More of them than are computed at a time, and no multiple of it."""
    rng = np.random.default_rng(0)
    count = 150
    prompts = rng.integers(1, 6, count).astype(np.int32)
    chosen, rejected = rng.integers(3, 40, (2, count, 12)).astype(np.int32)
    rejected = np.where(np.arange(12) < prompts[:, None], chosen, rejected)
    return Pairs(chosen, rejected, prompts, *rng.integers(1, 7, (2, count)).astype(np.int32))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def computed(pairs, policy, root):
    """`computed(pairs, policy)`: the result, and how often progress was told, so zero from the cache."""

    def compute(pairs=pairs, policy=policy):
        told: list[tuple[int, int]] = []
        result = reference.with_reference(
            pairs, *policy, tokens=TOKENS, root=root, progress=lambda *step: told.append(step)
        )
        return result, told

    return compute


@pytest.fixture(scope="module")
def first(computed):
    return computed()


def entries(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name.startswith("reference-"))


def test_they_are_the_policys_own_log_probabilities(first, policy, pairs):
    graph, params = policy

    @jax.jit
    def textbook(ids, prompts, lengths):
        policy = nnx.merge(graph, params)
        logps = jax.nn.log_softmax(policy.hidden(ids) @ policy.head.T)[:, :-1]
        picked = jax.numpy.take_along_axis(logps, ids[:, 1:, None], axis=-1)[..., 0]
        place = np.arange(1, ids.shape[1])
        inside = (place >= prompts[:, None]) & (place < (prompts + lengths)[:, None])
        return (picked * inside).sum(-1)

    result, _ = first
    for ids, lengths, ours in (
        (pairs.chosen_ids, pairs.chosen_length, result.reference_chosen),
        (pairs.rejected_ids, pairs.rejected_length, result.reference_rejected),
    ):
        assert ours.shape == (150,) and ours.dtype == np.float32
        np.testing.assert_allclose(ours, textbook(ids, pairs.prompt_length, lengths), atol=1e-4)


def test_at_step_zero_the_margin_is_zero(first, policy):
    """The batch of a training step, in another order and of another size, by the trainer's own operator."""
    result, _ = first
    graph, params = policy
    run = jax.jit(functools.partial(completion_logps, nnx.merge(graph, params), tokens=TOKENS))
    rows = np.array([149, 3, 77, 128, 0])
    chosen, rejected = (
        np.asarray(run(ids[rows], result.prompt_length[rows], lengths[rows]))
        for ids, lengths in (
            (result.chosen_ids, result.chosen_length),
            (result.rejected_ids, result.rejected_length),
        )
    )
    margins = (chosen - result.reference_chosen[rows]) - (rejected - result.reference_rejected[rows])
    np.testing.assert_allclose(margins, 0, atol=1e-5)


def test_pairs_are_otherwise_left_alone(first, pairs):
    for ours, theirs in zip(first[0][:5], pairs[:5], strict=True):
        assert ours is theirs


def test_a_second_time_they_are_read(first, computed):
    (result, told), (again, told_again) = first, computed()
    assert told[-1] == (300, 300) and [done for done, _ in told] == sorted(done for done, _ in told)
    assert told_again == []
    np.testing.assert_array_equal(again.reference_chosen, result.reference_chosen)
    np.testing.assert_array_equal(again.reference_rejected, result.reference_rejected)


def test_other_weights_are_another_entry(first, computed, policy):
    graph, params = policy
    moved = jax.tree.map(lambda x: x * 1.01, params)
    result, told = computed(policy=(graph, moved))
    assert told and not np.allclose(result.reference_chosen, first[0].reference_chosen, atol=1e-3)


def test_the_same_weights_in_another_model_are_another_entry(first, computed, policy):
    """Heads split the same matrices differently: no weight says how many there are."""
    other = make_policy(heads=4)
    for one, two in zip(jax.tree.leaves(other[1]), jax.tree.leaves(policy[1]), strict=True):
        np.testing.assert_array_equal(one, two)
    result, told = computed(policy=other)
    assert told and not np.array_equal(result.reference_chosen, first[0].reference_chosen)


@pytest.mark.parametrize("field", ["chosen_ids", "rejected_ids", "prompt_length", "rejected_length"])
def test_a_changed_pair_is_another_entry(first, computed, pairs, field):
    changed = getattr(pairs, field).copy()
    changed.flat[0] = changed.flat[0] % 5 + 1
    assert not np.array_equal(changed, getattr(pairs, field))
    assert computed(pairs._replace(**{field: changed}))[1]
    assert not computed()[1]  # and the old one is still there


def test_a_corrupt_entry_is_computed_again(pairs, policy, tmp_path):
    def compute():
        told: list[int] = []
        result = reference.with_reference(
            pairs, *policy, tokens=TOKENS, root=tmp_path, progress=lambda done, total: told.append(done)
        )
        return result, told

    whole, _ = compute()
    (entry,) = entries(tmp_path)
    file = entry / "reference.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
    mended, told = compute()
    assert told
    np.testing.assert_array_equal(mended.reference_chosen, whole.reference_chosen)
    assert compute()[1] == []


def test_no_random_state_is_touched(pairs, policy, tmp_path):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    reference.with_reference(pairs, *policy, tokens=TOKENS, root=tmp_path)
    np.testing.assert_array_equal(np.random.get_state()[1], before)

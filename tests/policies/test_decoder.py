import jax
import numpy as np
import pytest

from discojax.errors import UserError
from discojax.policies.decoder import KeyValueCache


def test_padding_on_the_right_changes_nothing_to_its_left(policy, rows, hidden):
    ids, _, _ = rows
    np.testing.assert_allclose(hidden(policy, ids)[:, :9], hidden(policy, ids[:, :9]), atol=1e-4)


def test_a_token_is_seen_by_those_after_it_only(policy, rows, hidden):
    ids, _, _ = rows
    changed = ids.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 61
    difference = np.abs(hidden(policy, ids) - hidden(policy, changed)).max(axis=(0, 2))
    assert (difference[:6] == 0).all() and (difference[6:] > 1e-4).all()


def test_reading_token_by_token_from_a_cache_is_reading_at_once(make_policy, rows, hidden):
    ids, _, _ = rows
    policy = make_policy(0, layers=2)  # whose caches must not be taken for one another
    starts = np.array([3, 5, 1, 4, 2])  # every row at its own position
    _, cache = jax.jit(lambda policy, ids: policy.prefill(ids))(policy, ids[:, :6])
    every = np.asarray(hidden(policy, ids))
    decode = jax.jit(lambda policy, *arguments: policy.decode(*arguments))
    room = ((0, 0), (0, 10), (0, 0), (0, 0))
    # What lies past a row's position is garbage from the prefill, which must never be looked at.
    cache = KeyValueCache(*(tuple(np.pad(x, room, constant_values=9.0) for x in part) for part in cache))
    for step in range(6):
        positions = starts + step
        last, cache = decode(policy, ids[np.arange(5), positions], cache, positions)
        np.testing.assert_allclose(last, every[np.arange(5), positions], atol=1e-4)


def test_more_tokens_than_positions_are_refused_in_words(policy, hidden):
    with pytest.raises(UserError, match="25 tokens do not fit into this policy's 24 positions"):
        policy.hidden(np.zeros((1, 25), np.int32))
    assert np.isfinite(hidden(policy, np.zeros((1, 24), np.int32))).all()


def test_the_head_is_the_embedding(policy):
    assert policy.head.shape == (61, 16)
    np.testing.assert_array_equal(policy.head, policy.embedding(np.arange(61)))

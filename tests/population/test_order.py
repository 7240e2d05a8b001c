import jax
import numpy as np
import pytest

from discojax.population.order import batch_indices


@pytest.fixture(scope="module")
def order():
    draw = jax.jit(batch_indices, static_argnames=("pairs", "batch"))
    return lambda seed, step, pairs=22, batch=4: np.asarray(draw(seed, step, pairs=pairs, batch=batch))


def test_every_epoch_is_a_permutation_of_whole_batches(order):
    for epoch in range(3):
        seen = np.concatenate([order(7, 5 * epoch + step) for step in range(5)])
        assert len(set(seen.tolist())) == 20 and seen.min() >= 0 and seen.max() < 22


def test_epochs_leave_out_different_pairs(order):
    left_out = [
        frozenset(range(22)) - {i for step in range(5) for i in order(7, 5 * epoch + step).tolist()}
        for epoch in range(8)
    ]
    assert len(set(left_out)) > 4


def test_it_is_a_function_of_seed_and_step(order):
    np.testing.assert_array_equal(order(3, 11), order(3, 11))
    drawn = {tuple(order(seed, step).tolist()) for seed in range(4) for step in range(8)}
    assert len(drawn) == 32


def test_it_is_the_same_under_vmap_and_in_any_order_of_calls(order):
    seeds, steps = np.array([0, 5, 5, 9]), np.array([17, 2, 0, 4])
    mapped = jax.vmap(lambda seed, step: batch_indices(seed, step, pairs=22, batch=4))(seeds, steps)
    for lane, expected in reversed(list(enumerate(mapped))):
        np.testing.assert_array_equal(order(seeds[lane], steps[lane]), expected)


def test_a_batch_may_be_all_there_is(order):
    assert sorted(order(0, 3, pairs=4, batch=4)) == [0, 1, 2, 3]


def test_every_pair_is_seen_about_as_often(order):
    counts = np.zeros(22)
    for seed in range(20):
        for step in range(25):
            counts[order(seed, step)] += 1
    assert counts.sum() == 2000
    assert abs(counts - 2000 / 22).max() < 12  # 91 each; the pairs left out of an epoch vary


def test_places_hold_any_pair_with_any_other_as_often():
    """Of 20,000 seeds: which pair stands in a place, and which two stand in the first two places."""
    count, seeds = 22, 20_000
    draw = jax.vmap(lambda seed: batch_indices(seed, np.int32(0), pairs=count, batch=count))
    found = np.asarray(jax.jit(draw)(np.arange(seeds, dtype=np.int32)))
    assert (np.sort(found, 1) == np.arange(count)).all()
    singles = np.stack([np.bincount(column, minlength=count) for column in found.T])
    twos = np.bincount(found[:, 0] * count + found[:, 1], minlength=count**2).reshape(count, count)
    twos = twos[~np.eye(count, dtype=bool)]
    for counts, free in ((singles, (count - 1) ** 2), (twos, count * (count - 1) - 1)):
        expected = counts.mean()
        chi_squared = ((counts - expected) ** 2).sum() / expected
        assert abs(chi_squared - free) < 4 * np.sqrt(2 * free)


def test_a_step_costs_the_same_however_many_pairs_there_are():
    def counted(pairs):
        draw = jax.jit(lambda seed, step: batch_indices(seed, step, pairs=pairs, batch=16))
        compiled = draw.lower(np.int32(0), np.int32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert counted(1_000_000) == counted(1_000) < 8_192

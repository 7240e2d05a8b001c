"""The frontier against an independent definition of it, and the properties a score must have."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discojax.search import frontier
from discojax.search.frontier import area, reward_at


def envelope(kl, reward, sft, at):
    """The least concave non-decreasing majorant by brute force: the best mixture of any two policies."""
    xs, ys = [0.0, *kl], [sft, *reward]
    best = -np.inf
    for x0, y0 in zip(xs, ys, strict=True):
        if x0 <= at:
            best = max(best, y0)
        for x1, y1 in zip(xs, ys, strict=True):
            if x0 <= at < x1:
                best = max(best, y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    return best


points = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 1)), min_size=1, max_size=7)


@settings(max_examples=80)
@given(points=points, sft=st.floats(0, 1), budget=st.floats(0.5, 30))
def test_area_is_the_integral_of_the_best_mixture(points, sft, budget):
    # A width below float precision would only test the brute force's own division.
    kl, reward = np.round(np.array(points).T, 3)
    grid = (np.arange(4000) + 0.5) / 4000 * budget
    height = np.array([envelope(kl, reward, sft, k) for k in grid[::40]])
    np.testing.assert_allclose(reward_at(kl, reward, grid[::40], (0.0, sft)), height, atol=1e-9)
    by_parts = np.mean(reward_at(kl, reward, grid, (0.0, sft)) - sft)
    assert area(kl, reward, budget, (0.0, sft)) == pytest.approx(by_parts, abs=2e-3)


def test_hand_computed_areas():
    sft = (0.0, 0.5)
    # Up to 0.7 over 4 nats (mean +0.1), then flat at +0.2 for 6: (0.4 + 1.2) / 10.
    assert area([4.0], [0.7], 10.0, sft) == pytest.approx(0.16)
    # A policy worse than SFT, or dominated, changes nothing.
    assert area([4.0, 2.0, 9.0], [0.7, 0.3, 0.6], 10.0, sft) == pytest.approx(0.16)
    assert area([3.0], [0.4], 10.0, sft) == 0.0
    # At KL 0 a better policy is better everywhere; a KL estimated below 0 is KL 0.
    assert area([0.0], [0.8], 10.0, sft) == pytest.approx(0.3)
    assert area([-0.2], [0.8], 10.0, sft) == pytest.approx(0.3)


def test_a_point_that_crosses_the_budget_does_not_jump():
    just_below = area([9.999999], [0.9], 10.0, (0.0, 0.5))
    just_above = area([10.000001], [0.9], 10.0, (0.0, 0.5))
    assert just_below == pytest.approx(just_above, abs=1e-6)


def test_diverged_points_never_help():
    rng = np.random.default_rng(0)
    kl, reward = rng.uniform(0, 20, (200, 5)), rng.uniform(0, 1, (200, 5))
    whole = area(kl, reward, 10.0, (0.0, 0.4))
    for bad in (np.nan, np.inf, -np.inf):
        broken_kl, broken_reward = kl.copy(), reward.copy()
        broken_kl[:, 2] = bad
        broken_reward[:, 4] = bad
        left = area(broken_kl, broken_reward, 10.0, (0.0, 0.4))
        assert np.isfinite(left).all()
        assert (left <= whole + 1e-12).all()
        assert (left < whole - 1e-6).any()
    assert area([np.nan], [np.nan], 10.0, (0.0, 0.4)) == 0.0


def test_replicates_are_scored_each_alone():
    rng = np.random.default_rng(1)
    kl, reward = rng.uniform(0, 20, (6, 7, 4)), rng.uniform(0, 1, (6, 7, 4))
    sft = rng.uniform(0.2, 0.5, (6, 1))
    together = area(kl, reward, 8.0, (0.0, sft))
    assert together.shape == (6, 7)
    for i in range(6):
        for j in range(7):
            alone = area(kl[i, j], reward[i, j], 8.0, (0.0, sft[i, 0]))
            assert together[i, j] == pytest.approx(float(alone), abs=1e-12)


def test_order_of_points_is_of_no_matter():
    rng = np.random.default_rng(2)
    kl, reward = rng.uniform(0, 20, 9), rng.uniform(0, 1, 9)
    turn = rng.permutation(9)
    assert area(kl, reward, 10.0) == pytest.approx(float(area(kl[turn], reward[turn], 10.0)), abs=1e-12)


def test_unit_is_reward():
    kl, reward = [2.0, 7.0, 15.0], [0.5, 0.6, 0.9]
    one = area(kl, reward, 10.0, (0.0, 0.4))
    assert area(kl, np.array(reward) * 3 + 1, 10.0, (0.0, 0.4 * 3 + 1)) == pytest.approx(3 * float(one))


@pytest.mark.parametrize("budget", [0.0, -1.0, np.nan, np.inf])
def test_a_budget_that_is_no_budget(budget):
    with pytest.raises(ValueError, match="budget"):
        area([1.0], [1.0], budget)


def test_sft_has_no_kl():
    with pytest.raises(ValueError, match="SFT"):
        area([1.0], [1.0], 5.0, (0.5, 0.2))


def test_doctests():
    assert doctest.testmod(frontier).failed == 0

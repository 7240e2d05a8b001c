"""Win rates: what they count, what length does to them, and how sure they say they are."""

import numpy as np
import pytest

from discojax.search.statistics import interval, mean
from discojax.search.winrate import length_controlled, rate_interval, win_rate


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_prompt_without_a_verdict_for_any_seed_is_left_out_whole():
    win = np.array([[1.0, 0.0, np.nan, 1.0], [1.0, 0.5, 1.0, 1.0]])
    rate, controlled, _, prompts = win_rate(win, np.ones((2, 4)), np.ones((2, 4)), rng=rng())
    assert prompts == 3 and rate.value == pytest.approx(4.5 / 6)
    assert controlled.value == pytest.approx(rate.value, abs=0.02)  # lengths are equal


def test_without_verdicts_there_is_no_number():
    win = np.full((2, 4), np.nan)
    rate, controlled, p, prompts = win_rate(win, np.ones((2, 4)), np.ones((2, 4)), rng=rng())
    assert rate is None and controlled is None and np.isnan(p) and prompts == 0


def test_a_judge_that_likes_length_alone_is_seen_through():
    generator = rng(1)
    difference = generator.normal(3, 4, (3, 400))
    likes_length = 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std())))
    win = (generator.random((3, 400)) < likes_length).astype(float)
    estimate = length_controlled(win, difference, rng=generator, replicates=200)
    low, high = interval(estimate)
    assert win.mean() > 0.66 and low <= 0.5 <= high


def test_a_true_preference_stays_when_length_is_held():
    generator = rng(2)
    difference = generator.normal(0, 4, (3, 400))
    win = (generator.random((3, 400)) < 0.8).astype(float)
    estimate = length_controlled(win, difference, rng=generator, replicates=100)
    assert estimate.value == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("always", [0.0, 1.0])
def test_one_who_always_wins_is_not_sure_to_win_always(always):
    win = np.full((3, 50), always)
    rate, controlled, p, _ = win_rate(win, np.ones((3, 50)), np.zeros((3, 50)), rng=rng())
    low, high = rate_interval(rate)
    assert 0.03 < high - low < 0.1 and 0 <= low <= high <= 1 and p == 0.0
    assert np.isfinite(controlled.value) and abs(controlled.value - always) < 0.1


def test_coverage_of_the_win_rate_with_seeds_and_prompts():
    """Both orders averaged, so outcomes are 0, a half and 1; prompts and seeds both vary."""
    generator, covered, tested = rng(3), 0, 2000
    for _ in range(tested):
        logit = generator.normal(0, 1, (1, 100)) + generator.normal(0, 0.2, (3, 1))
        win = (generator.random((2, 3, 100)) < 1 / (1 + np.exp(-logit))).mean(0)
        low, high = rate_interval(mean(win))
        covered += low <= 0.5 <= high
    assert 0.935 <= covered / tested <= 0.975


def test_coverage_of_the_length_controlled_rate():
    """A judge that likes length, and of equal length prefers nobody; the longer side is ours."""
    generator, covered, tested = rng(4), 0, 200
    for _ in range(tested):
        difference = generator.normal(3, 4, (3, 60))
        logit = 1.5 * np.tanh(difference / difference.std()) + generator.normal(0, 0.2, (3, 1))
        win = (generator.random((2, 3, 60)) < 1 / (1 + np.exp(-logit))).mean(0)
        low, high = rate_interval(length_controlled(win, difference, rng=generator, replicates=60))
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / tested <= 0.99

"""Intervals are honest: where objectives do not differ, 95 % intervals of a difference cover zero in 93-97 %.

Simulated by prompt and seed as evaluations are: nine objectives of one merit, four betas, three or five
seeds; with noise as it is (normal), with rare large outliers (Student's t with three degrees of freedom)
and skewed (log-normal); with seeds that matter not at all, a little, and much. Each of the nine
combinations of tails and seeds is simulated in 200 data sets, of eight differences to the baseline.
"""

from __future__ import annotations

import numpy as np
import pytest

from discojax.search.correlation import rank_correlation
from discojax.search.statistics import Samples, compare, interval, mean, resampled

DATA_SETS, PROMPTS, OBJECTIVES = 200, 64, 9
KL = np.array([2.0, 6.0, 14.0, 20.0])[:, None, None]
REWARD = np.array([0.55, 0.62, 0.66, 0.68])[:, None, None]


def noise(rng, shape, tails):
    """Mean 0 and variance 1."""
    if tails == "student":
        return rng.standard_t(3, shape) / np.sqrt(3)
    if tails == "lognormal":
        return (rng.lognormal(0, 1, shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    return rng.normal(size=shape)


def simulate(rng, seeds, tails, seed_sd):
    """Objectives that differ in nothing but their draws, and the SFT policy's reward."""
    easy = rng.normal(0, 0.15, PROMPTS)
    found = []
    for _ in range(OBJECTIVES):
        run = seed_sd * noise(rng, (1, seeds, 1), tails) + 0.5 * seed_sd * noise(rng, (4, seeds, 1), tails)
        taste = 0.08 * noise(rng, PROMPTS, tails)
        reward = REWARD + easy + taste + run + 0.2 * noise(rng, (4, seeds, PROMPTS), tails)
        spread = np.exp(0.1 * rng.normal(size=(4, seeds, 1)))
        found.append(Samples(reward, KL * spread * (1 + 0.4 * noise(rng, (4, seeds, PROMPTS), tails))))
    return found, 0.5 + easy + 0.2 * rng.normal(size=PROMPTS)


@pytest.mark.parametrize(
    "tails", ["normal", *(pytest.param(tails, marks=pytest.mark.slow) for tails in ("student", "lognormal"))]
)
def test_intervals_cover_no_difference_as_often_as_they_say(tails):
    rng = np.random.default_rng(0)
    areas: dict[tuple[int, float], list[bool]] = {}
    means: list[bool] = []
    for seed_sd, seeds in ((0.0, 3), (0.02, 3), (0.1, 3), (0.02, 5)):
        covered = areas.setdefault((seeds, seed_sd), [])
        for _ in range(DATA_SETS):
            (base, *others), sft = simulate(rng, seeds, tails, seed_sd)
            named = {str(i): other for i, other in enumerate(others)}
            for name, result in compare(named, base, sft, 10.0, rng=rng, replicates=200).items():
                low, high = result.interval
                covered.append(low <= 0 <= high)
                low, high = interval(mean((named[name].reward - base.reward)[1]))
                means.append(low <= 0 <= high)
    assert 0.93 <= np.mean(means) <= 0.97
    assert 0.93 <= np.mean(list(areas.values())) <= 0.97
    # In no corner is an interval too narrow, or wide for nothing. Two standard errors here are .015.
    for corner, covered in areas.items():
        assert 0.935 <= np.mean(covered) <= 0.99, corner


def test_any_statistic_has_the_intervals_of_the_mean():
    """The bootstrap of a mean is the analysis of variance of `mean`."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.15, 80) + rng.normal(0, 0.2, (3, 80))
    by_formula = mean(x)
    by_draws = resampled(lambda w: (w * x).sum((1, 2)), 3, 80, rng=rng, replicates=4000)
    assert by_draws.value == pytest.approx(by_formula.value)
    assert by_draws.error == pytest.approx(by_formula.error, rel=0.05)
    assert by_draws.seed_share == pytest.approx(by_formula.seed_share, abs=0.05)


def test_the_papers_search_score_says_nothing_of_its_held_out_score():
    """MT-Bench against AlpacaEval 2, length-controlled, over the ten losses of the DiscoPOP paper."""
    searched = {"discopop": 7.916, "cell": 7.925, "padll": 7.941, "dbaql": 7.978, "aql": 7.953,
                "aqfl": 7.931, "pfl": 7.900, "dpo": 7.888, "kto_pair": 7.603, "slic": 7.881}  # fmt: skip
    held_out = {"discopop": 65.18, "aqfl": 64.41, "padll": 64.15, "dpo": 63.34, "kto_pair": 62.76,
                "aql": 60.95, "slic": 59.67, "cell": 57.48, "pfl": 56.14, "dbaql": 54.40}  # fmt: skip
    names = list(searched)
    found = rank_correlation([searched[n] for n in names], [held_out[n] for n in names])
    assert found.value == pytest.approx(-0.12, abs=0.005) and found.pairs == 10
    assert found.low < -0.6 and found.high > 0.5  # and ten losses could not have told


def test_rank_correlation_is_scipys_and_leaves_out_what_failed():
    from scipy import stats

    rng = np.random.default_rng(2)
    x = rng.normal(size=20).round(1)  # with ties
    y = x + rng.normal(size=20)
    assert rank_correlation(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    hurt = np.append(y, [np.nan, 5.0])
    assert rank_correlation(np.append(x, [1.0, np.inf]), hurt) == rank_correlation(x, y)
    assert np.isnan(rank_correlation([1, 2, 3], [1, 2, 3]).value)
    assert np.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).value)


def test_the_interval_of_a_rank_correlation_covers():
    """Normal pairs of correlation 0.6, whose rank correlation is 6 / pi asin(0.3) = 0.582."""
    rng = np.random.default_rng(3)
    truth, covered, tested = 6 / np.pi * np.arcsin(0.3), 0, 1000
    for _ in range(tested):
        x = rng.normal(size=12)
        found = rank_correlation(x, 0.6 * x + 0.8 * rng.normal(size=12))
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / tested <= 0.98

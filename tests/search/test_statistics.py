"""Whether the intervals cover what they say, and the verdicts say no more than the intervals."""

import doctest

import numpy as np
import pytest
from scipy import stats

from discojax.search import statistics
from discojax.search.frontier import area
from discojax.search.statistics import (
    Estimate,
    Samples,
    compare,
    holm,
    interval,
    lower_bound,
    mean,
    p_value,
    survivors,
)

BUDGET = 10.0


def simulate(rng, seeds, prompts=64, objectives=2, seed_sd=0.03, noise=0.2, shifts=None):
    """Objectives of equal merit (but for `shifts`) with the variance that real runs have.

    Prompts differ in how easy they are for everyone (0.15) and for an objective (0.08); a seed moves a
    whole run and each of its betas (`seed_sd`), in KL by a tenth; sampled completions add `noise`.
    """
    easy = rng.normal(0, 0.15, prompts)
    kl = np.array([2.0, 6.0, 14.0])[:, None, None]
    reward = np.array([0.55, 0.62, 0.68])[:, None, None]

    def one(shift):
        run = rng.normal(0, seed_sd, (1, seeds, 1)) + 0.5 * rng.normal(0, seed_sd, (3, seeds, 1))
        taste = rng.normal(0, 0.08, prompts)
        return Samples(
            reward + shift + easy + taste + run + rng.normal(0, noise, (3, seeds, prompts)),
            kl
            * np.exp(0.1 * rng.normal(size=(3, seeds, 1)))
            * (1 + 0.4 * rng.normal(size=(3, seeds, prompts))),
        )

    lanes = [one(shift) for shift in (shifts if shifts is not None else np.zeros(objectives))]
    return lanes, 0.5 + easy + rng.normal(0, noise, prompts)


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_intervals_of_the_frontier_difference_cover_what_they_say(seeds):
    rng = np.random.default_rng(seeds)
    covered, tested = 0, 500
    for _ in range(tested):
        (one, other), sft = simulate(rng, seeds)
        result = compare({"one": one}, other, sft, BUDGET, rng=rng, replicates=200)["one"]
        low, high = result.interval
        covered += low <= 0 <= high
        # The p value and the interval are the same statement.
        assert (result.p_value < 0.05) == (not low <= 0 <= high)
    # Measured on 1,500 others: .967, .970, .964. Two standard errors of this simulation are .015.
    assert 0.93 - 0.015 <= covered / tested <= 0.97 + 0.015


@pytest.mark.parametrize("seeds", [2, 3, 4])
@pytest.mark.parametrize("seed_sd", [0.0, 0.02, 0.1])
def test_intervals_of_means_cover_whatever_the_share_of_the_seeds(seeds, seed_sd):
    rng = np.random.default_rng(7)
    tested, covered = 1000, 0
    for _ in range(tested):
        x = rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.15, 100) + rng.normal(0, 0.2, (seeds, 100))
        low, high = interval(mean(x))
        covered += low <= 0 <= high
    # Cochran's quantile errs on the safe side with two seeds; percentiles of resamples fall to .77.
    assert 0.935 <= covered / tested <= 0.985


def test_intervals_cover_a_real_difference():
    rng = np.random.default_rng(11)
    (big, big_base), sft = simulate(rng, seeds=400, prompts=4000, shifts=[0.05, 0.0], noise=0.0)
    truth = compare({"a": big}, big_base, sft, BUDGET, rng=rng, replicates=2)["a"].difference.value
    covered, tested = 0, 200
    for _ in range(tested):
        (one, base), sft = simulate(rng, seeds=4, shifts=[0.05, 0.0])
        low, high = compare({"a": one}, base, sft, BUDGET, rng=rng, replicates=200)["a"].interval
        covered += low <= truth <= high
    assert truth > 0.03
    assert covered / tested >= 0.92


def test_pairing_sees_what_unpaired_intervals_miss():
    rng = np.random.default_rng(3)
    (one, _), sft = simulate(rng, seeds=3, prompts=128)
    better = Samples(one.reward + 0.01 + rng.normal(0, 0.01, one.reward.shape), one.kl)
    result = compare({"better": better}, one, sft, BUDGET, rng=rng)["better"]
    assert result.verdict == "better"
    assert result.difference.error < result.score.error / 3


def test_verdicts_follow_holm_and_its_interval():
    rng = np.random.default_rng(5)
    shifts = [0.0, 0.3, -0.3, 0.0, 0.04, 0.06, 0.02]
    lanes, sft = simulate(rng, seeds=6, prompts=128, seed_sd=0.01, noise=0.1, shifts=shifts)
    results = compare({str(s) + str(i): x for i, (s, x) in enumerate(zip(shifts, lanes, strict=True))},
                      lanes[0], sft, BUDGET, rng=rng)  # fmt: skip
    verdicts = [r.verdict for r in results.values()]
    assert verdicts[:4] == ["baseline", "better", "worse", "no difference shown"]
    for r in results.values():
        low, high = r.holm_interval
        assert (r.verdict in ("better", "worse")) == (low > 0 or high < 0)
        assert low <= r.interval[0] <= r.interval[1] <= high
    # The baseline is scored, and is not one of the hypotheses.
    tested = [r for r in results.values() if r.verdict != "baseline"]
    np.testing.assert_allclose([r.p_holm for r in tested], holm([r.p_value for r in tested]))
    assert np.isnan(results["0.00"].p_value)
    assert results["0.00"].score.value > 0


def test_false_discoveries_of_a_family_are_held():
    rng = np.random.default_rng(13)
    wrong, tested = 0, 120
    for _ in range(tested):
        lanes, sft = simulate(rng, seeds=3, objectives=9)
        results = compare(dict(zip("abcdefgh", lanes[1:], strict=True)), lanes[0], sft, BUDGET,
                          rng=rng, replicates=200)  # fmt: skip
        wrong += any(r.verdict in ("better", "worse") for r in results.values())
    assert wrong / tested <= 0.08


def test_diverged_lanes_are_failures_and_never_help():
    rng = np.random.default_rng(17)
    (one, base), sft = simulate(rng, seeds=3)
    reward = one.reward.copy()
    reward[2, 1] = np.nan  # one seed of the largest KL
    everything = Samples(np.full_like(reward, np.nan), one.kl)
    results = compare({"whole": one, "hurt": Samples(reward, one.kl), "dead": everything}, base, sft, BUDGET,
                      rng=rng)  # fmt: skip
    assert results["hurt"].score.value < results["whole"].score.value
    assert (results["hurt"].failures, results["hurt"].lanes) == (1, 9)
    assert results["dead"].verdict == "failed" and results["dead"].failures == 9
    assert np.isnan(results["dead"].difference.value) and np.isnan(results["dead"].p_holm)
    # It was still one of the hypotheses: a failure does not make the others' tests easier.
    assert results["whole"].p_holm >= min(1.0, 2 * results["whole"].p_value)
    with pytest.raises(ValueError, match="baseline"):
        compare({"one": one}, everything, sft, BUDGET, rng=rng)


def test_one_seed_tests_nothing():
    rng = np.random.default_rng(19)
    (one, base), sft = simulate(rng, seeds=1, shifts=[0.5, 0.0])
    result = compare({"one": one}, base, sft, BUDGET, rng=rng)["one"]
    assert result.verdict == "no difference shown" and np.isnan(result.p_value)
    assert result.interval[0] > 0  # prompts alone, which racing's first rung ranks by


def test_equal_policies_do_not_differ():
    rng = np.random.default_rng(23)
    (one, _), sft = simulate(rng, seeds=2)
    copy = Samples(one.reward.copy(), one.kl.copy())
    result = compare({"copy": copy}, one, sft, BUDGET, rng=rng)["copy"]
    assert result.interval == (0.0, 0.0) and result.p_value == 1.0


def test_same_generator_same_numbers_in_any_order():
    rng = np.random.default_rng(29)
    (a, b, base), sft = simulate(rng, seeds=3, objectives=3)
    one = compare({"a": a, "b": b}, base, sft, BUDGET, rng=np.random.default_rng(1))
    two = compare({"b": b, "a": a}, base, sft, BUDGET, rng=np.random.default_rng(1))
    np.testing.assert_allclose(one["a"].interval, two["a"].interval, rtol=1e-12)
    np.testing.assert_allclose(one["b"].p_holm, two["b"].p_holm, rtol=1e-9)


def test_objectives_may_have_other_betas():
    rng = np.random.default_rng(31)
    (a, base), sft = simulate(rng, seeds=3)
    fewer = Samples(a.reward[:2], a.kl[:2])
    alone = compare({"a": fewer}, base, sft, BUDGET, rng=np.random.default_rng(1))["a"]
    beside = compare({"a": fewer, "all": a}, base, sft, BUDGET, rng=np.random.default_rng(1))["a"]
    assert alone.lanes == 6 and alone.failures == 0
    np.testing.assert_allclose(alone.interval, beside.interval)


def test_shapes_that_cannot_be_paired():
    rng = np.random.default_rng(37)
    (a, base), sft = simulate(rng, seeds=3)
    with pytest.raises(ValueError, match="same ones"):
        compare({"a": Samples(a.reward[:, :2], a.kl[:, :2])}, base, sft, BUDGET, rng=rng)
    with pytest.raises(ValueError, match="SFT"):
        compare({"a": a}, base, sft[:-1], BUDGET, rng=rng)
    with pytest.raises(ValueError, match="at least 2 prompts"):
        mean(np.zeros((3, 1)))


def test_mean_is_students_t_when_prompts_do_not_differ():
    # One column repeated: all variance is the seeds', and the interval is the textbook one.
    x = np.array([0.1, 0.4, 0.35, 0.2])[:, None] * np.ones((1, 10))
    expected = stats.t.interval(0.95, 3, x[:, 0].mean(), stats.sem(x[:, 0]))
    np.testing.assert_allclose(interval(mean(x)), expected)
    assert p_value(mean(x)) == pytest.approx(stats.ttest_1samp(x[:, 0], 0).pvalue, rel=1e-6)


def test_mean_is_students_t_of_prompts_when_seeds_agree():
    y = np.random.default_rng(41).normal(0.3, 1, 30)
    x = np.tile(y, (3, 1))
    np.testing.assert_allclose(interval(mean(x)), stats.t.interval(0.95, 29, y.mean(), stats.sem(y)))


def test_lower_bound_is_one_sided():
    estimate = Estimate(0.4, 0.1, 1.0, seeds=5, prompts=50)
    assert lower_bound(estimate, 0.95) == pytest.approx(0.4 - 0.1 * stats.t.ppf(0.95, 4))


def test_holm_matches_its_definition():
    p = np.array([0.001, 0.3, 0.012, 0.04, np.nan])
    np.testing.assert_allclose(holm(p), [0.005, 0.6, 0.048, 0.12, np.nan])
    assert holm([]).shape == (0,)
    assert holm([0.9, 0.8]).max() == 1.0


def test_survivors_are_a_function_of_bounds_and_names():
    names = ["d", "b", "a", "c"]
    assert survivors([0.2, 0.5, 0.2, 0.2], names, 3) == [1, 2, 3]
    assert survivors([np.nan, np.nan, 0.1, np.nan], names, 3) == [2]
    assert survivors([-np.inf, 0.0, np.nan, -1.0], names, 4) == [1, 3, 0]


def test_objectives_are_resampled_together_however_many_there_are(monkeypatch):
    """Four frontiers of whole arrays: thirty times as many in a loop would take minutes of a search."""
    shapes = []
    monkeypatch.setattr(statistics, "area", lambda kl, *rest: shapes.append(kl.shape) or area(kl, *rest))
    for objectives in (1, 30):
        rng = np.random.default_rng(43)
        lanes, sft = simulate(rng, seeds=3, prompts=16, objectives=objectives + 1)
        named = {str(i): x for i, x in enumerate(lanes[1:])}
        assert len(compare(named, lanes[0], sft, BUDGET, rng=rng, replicates=50)) == objectives
        assert [shape[:2] for shape in shapes] == [(1, objectives + 1)] + [(50, objectives + 1)] * 3
        shapes.clear()


def test_doctests():
    assert doctest.testmod(statistics).failed == 0

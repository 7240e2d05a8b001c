"""What the measurements show, and how sure one can be: intervals, tests, verdicts, racing.

Every measurement is a number for a (training seed, prompt) pair. Both are random draws, and crossed:
each seed's policy answers the same prompts, and every objective has the same seeds and the same prompts
(common random numbers), so that objectives are compared in pairs. Rows are never treated as independent.

**Variance.** A hierarchical bootstrap resamples seeds alone, prompts alone, and both, through
the whole score: points, frontier, area, difference to the baseline. The three variances are those of
a two-way random-effects analysis of variance (Searle, Casella & McCulloch 1992, chapter 4), each corrected
for resampling from few, n / (n - 1) (Rao & Wu 1988). They are about the replicates' own mean: about the
estimate they would hold the hull's bias as well, and intervals covered .975 and more:

    Var = V_seed + max(V_prompt - V_interaction, 0)

The interaction is in both of the first two, and counting it twice is what makes the bootstrap of both
conservative (Owen, "The pigeonhole bootstrap", 2007).

How an error becomes an interval is said in `search.estimates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from numpy.typing import ArrayLike

from discojax.search.estimates import (
    Estimate,
    adjusted_by_holm,
    combined,
    holm,
    interval,
    lower_bound,
    mean,
    p_value,
)
from discojax.search.frontier import area

__all__ = [
    "Comparison",
    "Estimate",
    "Samples",
    "Verdict",
    "bootstrapped",
    "compare",
    "holm",
    "interval",
    "lower_bound",
    "mean",
    "p_value",
    "resampled",
    "survivors",
]

Verdict = Literal["better", "worse", "no difference shown", "failed", "baseline"]


class Samples(NamedTuple):
    """What one objective's policies did: one lane a (beta, seed), one value a prompt.

    Attributes:
      reward: float, in units of the reward; the mean over a prompt's completions if there are several.
      kl: the same for sequence KL(policy‖reference), in nats.

    A lane that diverged is NaN. One such lane removes its beta's point from the frontier: to average
    over the seeds that survived would reward an objective for failing on the hard ones.
    """

    reward: Float[Array, "betas seeds prompts"]
    kl: Float[Array, "betas seeds prompts"]


@dataclass(frozen=True)
class Comparison:
    """One objective against the baseline, on the same seeds and prompts.

    Attributes:
      name: the objective.
      score: its frontier area above SFT, in units of reward.
      difference: its area minus the baseline's. NaN if it failed.
      interval: of the difference, at the confidence asked for, by itself.
      holm_interval: the same at the level Holm's procedure leaves to this objective: it excludes zero
        exactly when `p_holm` is below 1 - confidence.
      p_value: two-sided, of no difference. NaN if it failed or there is one seed.
      p_holm: the same after Holm's correction over all objectives of the comparison.
      verdict: "better" and "worse" only by `p_holm`; "failed" if no beta gave a point; "baseline" for
        the baseline itself.
      failures: lanes that diverged, of `lanes`.
    """

    name: str
    score: Estimate
    difference: Estimate
    interval: tuple[float, float]
    holm_interval: tuple[float, float]
    p_value: float
    p_holm: float
    verdict: Verdict
    failures: int
    lanes: int


def compare(
    objectives: Mapping[str, Samples],
    baseline: Samples,
    sft_reward: ArrayLike,
    budget: float,
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Comparison]:
    """Frontier areas of all objectives, and their differences to the baseline's.

    Args:
      objectives: by name. Seeds and prompts are the baseline's, in its order; betas may differ.
      baseline: usually DPO's. If the same object is among `objectives`, it gets a score and no test.
      sft_reward: the SFT policy's reward on the same prompts, `[prompts]`.
      budget: the KL budget of `frontier.area`, in nats.
      rng: the only source of randomness. Objectives share its draws, so names and order do not matter
        to any number but the Holm corrections, which depend on which objectives are compared.
      replicates: bootstrap replicates, of each of the three kinds.
      confidence: of the intervals; 1 - confidence is the family's error rate.

    Raises:
      ValueError: if shapes disagree, there are fewer than two prompts, or the baseline has no beta
        whose lanes all trained.
    """
    sft = np.asarray(sft_reward, np.float64)
    stack = _stack({**objectives, "(baseline)": baseline}, sft)
    _, _, seeds, prompts = stack.reward.shape
    broken = ~np.isfinite(stack.reward + stack.kl).all(-1)  # [objectives, betas, seeds]
    dead = broken.any(-1).all(-1)
    if dead[-1]:
        raise ValueError("the baseline has no beta at which all of its seeds trained")

    def score(samples: Samples, base: Array) -> Array:
        return area(samples.kl, samples.reward, budget, (0.0, base))

    seed_weight = rng.multinomial(seeds, np.full(seeds, 1 / seeds), replicates) / seeds
    prompt_weight = rng.multinomial(prompts, np.full(prompts, 1 / prompts), replicates) / prompts
    one_seed, one_prompt = np.full((1, seeds), 1 / seeds), np.full((1, prompts), 1 / prompts)
    # Each [replicates, objectives]: the areas with nothing, seeds, prompts, and both resampled.
    whole, by_seed, by_prompt, by_both = (
        score(_resample(stack, s, p), (p @ sft)[:, None])
        for s, p in (
            (one_seed, one_prompt),
            (seed_weight, one_prompt),
            (one_seed, prompt_weight),
            (seed_weight, prompt_weight),
        )
    )

    def estimates(relative_to: Array | None) -> list[Estimate]:
        point, a, b, both = (
            x if relative_to is None else x - x[:, relative_to] for x in (whole, by_seed, by_prompt, by_both)
        )
        grow_seed, grow_prompt = seeds / max(seeds - 1, 1), prompts / (prompts - 1)
        return combined(
            point[0],
            np.var(a, 0) * grow_seed,
            np.var(b, 0) * grow_prompt,
            np.var(both - a - b, 0) * grow_seed * grow_prompt,
            (seeds, prompts),
        )

    scores, differences = estimates(None), estimates(np.array([-1]))
    tested = [i for i, samples in enumerate(objectives.values()) if samples is not baseline]
    p, adjusted = np.full((2, len(objectives)), np.nan)
    multiplier = np.ones(len(objectives))
    p[tested] = [np.nan if dead[i] else p_value(differences[i]) for i in tested]
    adjusted[tested], multiplier[tested] = adjusted_by_holm(p[tested])
    results = {}
    for i, (name, samples) in enumerate(objectives.items()):
        nothing = Estimate(np.nan, np.nan, np.nan, seeds, prompts)
        value, difference = (nothing, nothing) if dead[i] else (scores[i], differences[i])
        verdict: Verdict = "no difference shown"
        if samples is baseline:
            verdict = "baseline"
        elif dead[i]:
            verdict = "failed"
        elif adjusted[i] < 1 - confidence:
            verdict = "better" if difference.value > 0 else "worse"
        lanes = samples.reward.shape[0] * seeds
        results[name] = Comparison(
            name=name,
            score=value,
            difference=difference,
            interval=interval(difference, confidence),
            holm_interval=interval(difference, 1 - (1 - confidence) / multiplier[i]),
            p_value=float(p[i]),
            p_holm=float(adjusted[i]),
            verdict=verdict,
            failures=int(broken[i, : samples.reward.shape[0]].sum()),
            lanes=lanes,
        )
    return results


def resampled(
    statistic: Callable[[Float[Array, "replicates seeds prompts"]], Float[Array, " replicates"]],
    seeds: int,
    prompts: int,
    *,
    rng: np.random.Generator,
    replicates: int = 500,
) -> Estimate:
    """Any statistic of weighted measurements, with the same variances as `compare`.

    Args:
      statistic: its values under each of many weightings of the (seed, prompt) pairs, which are not
        negative and sum to 1.
      seeds, prompts: how many there are.
      rng: the only source of randomness.
      replicates: of each of the three kinds.
    """
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), replicates) / seeds
    by_prompt = rng.multinomial(prompts, np.full(prompts, 1 / prompts), replicates) / prompts
    one_seed, one_prompt = np.full((1, seeds), 1 / seeds), np.full((1, prompts), 1 / prompts)
    point, a, b, both = (
        statistic(s[:, :, None] * p[:, None, :])
        for s, p in (
            (one_seed, one_prompt), (by_seed, one_prompt), (one_seed, by_prompt), (by_seed, by_prompt),
        )
    )  # fmt: skip
    grow_seed, grow_prompt = seeds / max(seeds - 1, 1), prompts / (prompts - 1)
    (estimate,) = combined(
        point,
        np.var(a)[None] * grow_seed,
        np.var(b)[None] * grow_prompt,
        np.var(both - a - b)[None] * grow_seed * grow_prompt,
        (seeds, prompts),
    )
    return estimate


def bootstrapped(
    values: Float[Array, " prompts"],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The interval of a mean over prompts that one policy was measured on, from resampled prompts.

    Percentiles of the replicates' means, so no bound is outside of what was measured, such as a share
    above 1. Those of few prompts are too narrow, and are taken as far out as Student's t asks for: the
    expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).

    Args:
      values: one a prompt, at least two.
      rng: the only source of randomness.
      replicates: how often prompts are resampled.
      confidence: of the interval.
    """
    from scipy.special import ndtr, stdtrit  # type: ignore[import-untyped, unused-ignore]  # deferred: slow

    count = len(values)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(replicates)]
    tail = ndtr((count / (count - 1)) ** 0.5 * stdtrit(count - 1, (1 - confidence) / 2))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def survivors(bounds: ArrayLike, names: Sequence[str], keep: int) -> list[int]:
    """Successive halving's choice: the indices of the `keep` highest lower bounds, best first.

    Equal bounds are ordered by name, so the choice does not depend on the order of arrival. NaN, the
    bound of what failed, never survives, even if fewer than `keep` remain.

    >>> survivors([0.1, float("nan"), 0.3, 0.1], ["b", "c", "d", "a"], keep=2)
    [2, 3]
    """
    values = np.asarray(bounds, np.float64)
    alive = [i for i in range(len(names)) if not np.isnan(values[i])]
    return sorted(alive, key=lambda i: (-values[i], names[i]))[:keep]


def _stack(objectives: Mapping[str, Samples], sft: Array) -> Samples:
    """All objectives in one array `[objectives, betas, seeds, prompts]`, missing betas NaN."""
    shape = list(objectives.values())[-1].reward.shape[1:]
    for name, samples in objectives.items():
        if samples.reward.ndim != 3 or samples.reward.shape != samples.kl.shape:
            raise ValueError(
                f"{name}: reward {samples.reward.shape} and kl {samples.kl.shape} must both be "
                "[betas, seeds, prompts]"
            )
        if samples.reward.shape[1:] != shape:
            raise ValueError(
                f"{name}: {samples.reward.shape[1:]} seeds and prompts, the baseline has {shape}; "
                "paired differences need the same ones"
            )
    if sft.shape != shape[1:]:
        raise ValueError(f"the SFT reward must be [prompts] = {shape[1:]}, not {sft.shape}")
    if shape[1] < 2:
        raise ValueError(f"an interval needs at least 2 prompts, not {shape[1]}")
    betas = max(samples.reward.shape[0] for samples in objectives.values())
    reward, kl = np.full((2, len(objectives), betas, *shape), np.nan)
    for i, samples in enumerate(objectives.values()):
        ok = np.isfinite(samples.reward) & np.isfinite(samples.kl)
        reward[i, : len(samples.reward)] = np.where(ok, samples.reward, np.nan)
        kl[i, : len(samples.kl)] = np.where(ok, samples.kl, np.nan)
    return Samples(reward, kl)


def _resample(
    samples: Samples,
    seed_weight: Float[Array, "replicates seeds"],
    prompt_weight: Float[Array, "replicates prompts"],
) -> Samples:
    """Weighted means over seeds and prompts, `[replicates, objectives, betas]`; one row broadcasts."""

    def weighted(x: Array) -> Array:
        # The weights are shared by all objectives: that is what pairs them.
        with np.errstate(invalid="ignore"):  # diverged lanes are NaN, and stay so
            if len(seed_weight) == 1:
                return np.tensordot(prompt_weight, np.tensordot(seed_weight[0], x, (0, 2)), (1, 2))
            if len(prompt_weight) == 1:
                return np.tensordot(seed_weight, x @ prompt_weight[0], (1, 2))
            each = (np.tensordot(prompt_weight, x[:, :, s], (1, 2)) for s in range(x.shape[2]))
            return sum((w[:, None, None] * e for w, e in zip(seed_weight.T, each, strict=True)), np.zeros(()))

    return Samples(weighted(samples.reward), weighted(samples.kl))

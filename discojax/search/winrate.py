"""Win rates: how often a judge prefers one policy's completions, and what length has to do with it.

A pair's outcome is in [0, 1], over both orders of asking, a tie counting a half. Prompts are unique and
every seed's policy answers each of them, so a rate is a mean over (seed, prompt), with the intervals of
`statistics.mean`; judged rows are never taken as independent. A prompt that lacks a verdict for any seed
is left out as a whole, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from discojax.search.statistics import Estimate, interval, mean, p_value, resampled

__all__ = ["WinRate", "length_controlled", "rate_interval", "win_rate"]

_RIDGE = 1e-3  # keeps the fit finite where one side always wins
_NEWTON = 12  # steps; the loss is convex and close to quadratic


@dataclass(frozen=True)
class WinRate:
    """How an objective's completions fare against an opponent's.

    Attributes:
      name: the objective.
      opponent: "human" or "sft".
      judge: its name.
      proxy: whether the judge is a model that stands in for one.
      rate: in [0, 1]; None if fewer than two prompts have verdicts for all seeds.
      controlled: the same at equal length; see `length_controlled`.
      difference: rate minus the baseline's on the prompts that both have, None for the baseline.
      difference_p_holm: two-sided p value of no difference, and
      p_value: of a rate of one half; NaN with one seed.
      p_holm: the same; both are corrected by Holm over everything that meets this opponent.
      prompts: those behind the rate, of
      asked: unique prompts judged.
      ties, unparseable, unanswered: verdicts, of
      verdicts: two a seed and prompt, one for each order.
      empty: completions without a word, which are judged like others.
    """

    name: str
    opponent: str
    judge: str
    proxy: bool
    rate: Estimate | None
    controlled: Estimate | None
    difference: Estimate | None
    p_value: float
    p_holm: float
    difference_p_holm: float | None
    prompts: int
    asked: int
    ties: int
    unparseable: int
    unanswered: int
    verdicts: int
    empty: int


def win_rate(
    win: Float[Array, "seeds prompts"],
    lengths: Float[Array, "seeds prompts"],
    opponent_lengths: Float[Array, "seeds prompts"],
    *,
    rng: np.random.Generator,
    replicates: int = 500,
) -> tuple[Estimate | None, Estimate | None, float, int]:
    """The rate, the length-controlled rate, the p value of one half, and the prompts behind them.

    Args:
      win: outcomes, NaN where there is no verdict.
      lengths, opponent_lengths: words of both sides.
      rng: of the bootstrap of the controlled rate.
      replicates: of it.
    """
    known = np.isfinite(win).all(axis=0)
    count = int(known.sum())
    if count < 2:
        return None, None, np.nan, count
    rate = mean(win[:, known])
    difference = lengths[:, known] - opponent_lengths[:, known]
    controlled = length_controlled(win[:, known], difference, rng=rng, replicates=replicates)
    return rate, controlled, p_value(rate, 0.5), count


def rate_interval(rate: Estimate, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a rate, within [0, 1]. One of 0 or 1 has Clopper and Pearson's, by prompt: that
    nothing varied does not mean that nothing could."""  # noqa: D205, D209
    low, high = interval(rate, confidence)
    most = 1 - ((1 - confidence) / 2) ** (1 / rate.prompts)
    if rate.value <= 0:
        return 0.0, max(high, most)
    if rate.value >= 1:
        return min(low, 1 - most), 1.0
    return max(low, 0.0), min(high, 1.0)


def length_controlled(
    win: Float[Array, "seeds prompts"],
    difference: Float[Array, "seeds prompts"],
    *,
    rng: np.random.Generator,
    replicates: int = 500,
) -> Estimate:
    """The win rate that a logistic regression predicts for completions of equal length.

    After AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval"), without its term for how
    hard a prompt is: P(win) = sigmoid(a + b tanh(d / sd d)), and the rate is sigmoid(a).

    Args:
      win: outcomes in [0, 1], all finite.
      difference: words more than the opponent's, d above.
      rng: of the bootstrap by seed and prompt.
      replicates: of it.
    """
    spread = difference.std() or 1.0
    feature = np.tanh(difference / spread).ravel()
    outcome = win.ravel()
    design = np.stack([np.ones_like(feature), feature], axis=1)  # [pairs, 2]

    def fitted(weights: Array) -> Array:
        flat = weights.reshape(len(weights), -1)
        beta = np.zeros((len(flat), 2))
        for _ in range(_NEWTON):
            p = 0.5 * (1 + np.tanh(0.5 * beta @ design.T))  # [replicates, pairs]
            gradient = (flat * (outcome - p)) @ design - _RIDGE * beta
            curvature = np.einsum("rn,ni,nj->rij", flat * p * (1 - p), design, design)
            step = np.linalg.solve(curvature + _RIDGE * np.eye(2), gradient[..., None])[..., 0]
            beta = beta + np.clip(step, -2.0, 2.0)
        return np.asarray(0.5 * (1 + np.tanh(0.5 * beta[:, 0])))

    return resampled(fitted, *win.shape, rng=rng, replicates=replicates)

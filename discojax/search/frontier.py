"""The reward-KL frontier: a score that does not change when a loss or its beta is rescaled.

Beta and the scale of a loss trade off against each other, so the reward at one beta says more about
the step size than about the loss. What can be compared is the trade itself: trained at several
betas, an objective gives policies at points (sequence KL to the reference in nats, reward), and its
score is the area under the best reward reachable within a KL of k, for k up to a budget.

**Which frontier.** Here it is the upper concave hull of the points and of the SFT policy at
(0, its reward), flat after its highest point. Every reward on it can be realised: the policy that draws
its completion from policy i with probability w_i has the mean reward sum w_i r_i, and, KL being convex
(Cover & Thomas, *Elements of Information Theory*, theorem 2.7.2), a KL of at most sum w_i k_i. The Pareto
staircase, whose area is the hypervolume indicator (Zitzler & Thiele, PPSN 1998), is also realisable but
never above the hull, and it jumps: a point that drifts from just below the budget to just above it takes
its whole step away, so measurement noise in KL becomes noise in the score. The hull is continuous in
every coordinate; a point beyond the budget contributes only by the edge that leads to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from numpy.typing import ArrayLike

__all__ = ["area", "reward_at"]


def area(
    kl: ArrayLike,
    reward: ArrayLike,
    budget: float,
    origin: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
) -> Float[Array, "*replicates"]:
    """The mean height of the frontier above the SFT policy over KL in [0, budget], in units of reward.

    A point with a NaN or infinite coordinate (a policy that diverged) is left out, which can only
    lower the area; counting such points as failures is the caller's part. Estimates of KL below
    zero, which sampling can give near the reference, count as zero.

    Args:
      kl: sequence KL(policy‖reference) in nats, `[..., points]`.
      reward: mean reward, `[..., points]`. Leading axes, such as bootstrap replicates, broadcast.
      budget: the largest KL that counts, in nats, above 0. Fix it before looking at any result.
      origin: (KL, reward) of the SFT policy: KL is 0; the reward is a scalar or `[...]`.

    Returns:
      float64 `[...]`, never negative; 0 where no point is better than the SFT policy.

    Raises:
      ValueError: if the budget is not a positive number, or the origin is not at KL 0.

    >>> print(area([5.0, 10.0], [0.6, 0.7], budget=10.0, origin=(0.0, 0.5)).round(6))  # straight to +0.2
    0.1
    >>> print(area([20.0], [0.9], budget=10.0, origin=(0.0, 0.5)).round(6))  # half way at the budget: +0.2
    0.1
    """
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"the KL budget must be a positive number of nats, not {budget}")
    total: Array = np.zeros(())
    base = np.asarray(origin[1], np.float64)
    for left, low, right, high in _edges(kl, reward, origin):
        # np.minimum: the part of the edge below the budget; it is empty for edges that start beyond it.
        start, end = np.minimum(left, budget), np.minimum(right, budget)
        width = np.where(right > left, right - left, 1.0)
        slope = (high - low) / width
        middle = low + slope * (0.5 * (start + end) - left)
        total = total + (end - start) * (middle - base)
    # The last edge is flat and ends nowhere, so every march reaches the budget.
    return np.maximum(np.asarray(total / budget), 0.0)


def reward_at(
    kl: ArrayLike,
    reward: ArrayLike,
    at: ArrayLike,
    origin: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
) -> Float[Array, "*replicates levels"]:
    """The best reward reachable within each KL of `at`: the height of the frontier of `area`.

    Args:
      kl: as in `area`, `[..., points]`.
      reward: as in `area`, `[..., points]`.
      origin: as in `area`.
      at: KL levels in nats, `[levels]`, none negative.

    Returns:
      float64 `[..., levels]`.
    """
    levels = np.asarray(at, np.float64)
    value: Array = np.full(levels.shape, np.nan)
    for left, low, right, high in _edges(kl, reward, origin):
        left, low, right, high = (np.asarray(x)[..., None] for x in (left, low, right, high))
        slope = (high - low) / np.where(right > left, right - left, 1.0)
        inside = (levels >= left) & (levels <= right)
        value = np.where(inside, low + np.where(inside, slope * (levels - left), 0.0), value)
    return value


def _edges(
    kl: ArrayLike, reward: ArrayLike, origin: tuple[ArrayLike, ArrayLike]
) -> Iterator[tuple[Array, Array, Array, Array]]:
    """The frontier's edges from left to right, as (KL, reward, KL, reward) of their ends, each `[...]`.

    Jarvis' march: from the last vertex go to the point of the steepest slope to its right, until none
    rises. Exact, and every step is one pass over all replicates at once. The last edge is flat and
    ends at infinity; an edge of no width (where a replicate has fewer vertices) adds nothing.
    """
    if np.any(np.asarray(origin[0]) != 0):
        raise ValueError("the SFT policy is the reference, so its KL is 0")
    x, y = np.broadcast_arrays(np.asarray(kl, np.float64), np.asarray(reward, np.float64))
    base = np.asarray(origin[1], np.float64)
    lead = np.broadcast_shapes(x.shape[:-1], base.shape)
    x, y = np.broadcast_to(x, lead + x.shape[-1:]), np.broadcast_to(y, lead + y.shape[-1:])
    usable = np.isfinite(x) & np.isfinite(y)
    x = np.maximum(np.where(usable, x, 0.0), 0.0)
    y = np.where(usable, y, -np.inf)

    left = np.zeros(lead)
    low = np.maximum(base, np.max(np.where(x <= 0, y, -np.inf), axis=-1, initial=-np.inf))
    for _ in range(x.shape[-1]):
        ahead = x > left[..., None]
        run = np.where(ahead, x - left[..., None], 1.0)
        slope = np.where(ahead, (y - low[..., None]) / run, -np.inf)
        best = np.argmax(slope, axis=-1)[..., None]
        rises = np.take_along_axis(slope, best, -1)[..., 0] > 0
        if not rises.any():
            break
        right = np.where(rises, np.take_along_axis(x, best, -1)[..., 0], left)
        high = np.where(rises, np.take_along_axis(y, best, -1)[..., 0], low)
        yield left, low, right, high
        left, low = right, high
    yield left, low, np.full(lead, np.inf), low

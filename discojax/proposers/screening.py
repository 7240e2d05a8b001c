"""A proposer's own cheap look at a loss, so that few of its proposals fail the gate.

It decides nothing: the gate decides. A loss is evaluated, with its slopes, on a fixed batch of
pairs through the machine that trains it, compiled once. What comes out is also its *behaviour*:
the slopes, up to the loss's own scale, which Adam and the frontier score do not see. Two losses
with the same behaviour train the same policy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from discojax.candidates import GraphError, Node, lower
from discojax.objectives.machine import Code, encode, evaluate
from discojax.objectives.types import LogProbs

__all__ = ["SLOPES", "Behaviour", "behaviour", "gaps"]

Behaviour = Float[np.ndarray, " slopes"]

_PAIRS = 16
_BETA = np.array([0.05, 0.5, 0.1, 0.1, 0.05, 1.0], np.float32)
_PROGRESS = np.array([0.0, 0.5, 0.1, 0.7, 0.4, 1.0], np.float32)
_SPREAD = np.array([0.0, 0.0, 1.0, 5.0, 50.0, 50.0], np.float32)  # of the log-ratio margin, in nats
_SETTINGS = len(_BETA)
SLOPES = 2 * _SETTINGS * _PAIRS
"""How many numbers a behaviour has."""
_LEAST_SLOPE = 1e-5
_STEEPEST = 1e6


@functools.cache
def _pairs() -> LogProbs:
    """Six batches: two at the start, where policy equals reference, then ever further from it."""
    rng = np.random.default_rng(11)
    length = rng.integers(1, 60, (2, _SETTINGS, _PAIRS))
    reference = -(length * rng.uniform(0.5, 8.0, length.shape)) - 25.0 * (_SPREAD[:, None] > 20)
    ratio = np.clip(rng.normal(0.0, 0.5, length.shape), -0.5, 0.5) * _SPREAD[:, None]
    ratio[:, -2:, :2] = np.array([[[25.0, -25.0]], [[-25.0, 25.0]]])  # both ends of the range
    policy = np.minimum(reference + ratio, 0.0)
    return LogProbs(
        *(x.astype(np.float32) for x in (policy[0], policy[1], reference[0], reference[1])),
        *(x.astype(np.int32) for x in length),
    )


@functools.cache
def _compiled() -> Callable[..., jax.Array]:
    def probe(code: Code, given: tuple[LogProbs, jax.Array, jax.Array]) -> jax.Array:
        logps, beta, progress = given

        def mean(policy: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            values = evaluate(code, LogProbs(*policy, *logps[2:]), beta, progress)
            return values.mean(), values

        slopes, values = jax.grad(mean, has_aux=True)((logps.policy_chosen, logps.policy_rejected))
        return jnp.stack([values, *slopes])

    # One setting after the other: the machine takes twice as long to compile under `vmap`.
    everywhere = jax.jit(lambda code, *given: jax.lax.map(lambda one: probe(code, one), given))
    return everywhere.lower(encode([], "beta"), _pairs(), _BETA, _PROGRESS).compile()


@functools.lru_cache(maxsize=8192)
def behaviour(graph: Node) -> Behaviour | None:
    """What the loss does to the policy, or None if it would not train one.

    It must be finite at the start and over realistic pairs, have a gradient at the start, and raise
    the chosen above the rejected on average off the start. Not at the start itself: the published
    DiscoPOP loss first lowers small margins.

    Returns:
      its slopes in both policy log-probabilities over all pairs, float32 `[slopes]`, in units of
      their mean size near the start, on a logarithmic scale.
    """
    try:
        code = lower(graph)
    except (GraphError, ValueError):  # too large for the machine
        return None
    found = np.asarray(_compiled()(code, _pairs(), _BETA, _PROGRESS))  # [settings, 3, pairs]
    if not np.isfinite(found).all():
        return None
    slopes = found[:, 1:] * _PAIRS
    rise = (slopes[:, 1] - slopes[:, 0]).mean(axis=-1)  # of the margin, per step downhill
    sizes = np.abs(slopes[:4])
    alive = sizes.mean(axis=(1, 2)).min() > _LEAST_SLOPE and sizes.max() < _STEEPEST
    if not alive or rise[3:5].min() < _LEAST_SLOPE:
        return None
    return np.arcsinh(slopes / sizes.mean()).astype(np.float32).ravel()


def gaps(one: Behaviour, others: Float[np.ndarray, "losses slopes"]) -> Float[np.ndarray, " losses"]:
    """How far the slopes of each other loss lie from this one's at most, in units of the mean slope."""
    return np.abs(others - one).max(axis=1)

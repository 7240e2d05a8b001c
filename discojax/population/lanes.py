"""Lanes: policies in training, side by side. A lane is one policy, its optimiser and its orders.

The leading axis of every array here is the lane. Nothing in a lane's settings is static: another
objective, seed, beta or budget is other numbers, and the compiled step serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from discojax.objectives.machine import Code, encode

__all__ = ["Job", "LaneSettings", "LaneState", "idle_settings", "initial_state", "stack_jobs"]

_Array = Any  # NumPy on the host, where the engine writes them; JAX in the compiled step


class Job(NamedTuple):
    """What one lane is to train: an objective (as `code`) from the SFT weights, for `steps` steps.

    `seed` decides the order of the data and nothing else does, so two jobs with the same seed see
    the same pairs in the same order (common random numbers).
    """

    code: Code
    beta: float
    seed: int
    learning_rate: float
    steps: int


class LaneSettings(NamedTuple):
    """The orders of every lane; a `Job` with a leading lane axis."""

    code: Code
    beta: Float[_Array, " lanes"]
    seed: Int[_Array, " lanes"]
    learning_rate: Float[_Array, " lanes"]
    steps: Int[_Array, " lanes"]


class LaneState(NamedTuple):
    """What training changes.

    Attributes:
      params: policy weights, float32, `[lanes, ...]`.
      moments: the optimiser's state, `[lanes, ...]`.
      step: steps taken. A lane whose `step` has reached its budget is idle and does not change.
      diverged: whether a loss or gradient was not finite; such a lane stops before the bad update.
    """

    params: Any
    moments: optax.OptState
    step: Int[Array, " lanes"]
    diverged: Bool[Array, " lanes"]


def stack_jobs(jobs: Sequence[Job]) -> LaneSettings:
    """`LaneSettings` of these jobs, in order, as host arrays."""
    code = Code(*(np.stack(leaves) for leaves in zip(*(job.code for job in jobs), strict=True)))
    return LaneSettings(
        code,
        np.asarray([job.beta for job in jobs], np.float32),
        np.asarray([job.seed for job in jobs], np.int32),
        np.asarray([job.learning_rate for job in jobs], np.float32),
        np.asarray([job.steps for job in jobs], np.int32),
    )


def idle_settings(lanes: int) -> LaneSettings:
    """Settings under which no lane trains: what free lanes hold."""
    return stack_jobs([Job(encode([], 0.0), 0.0, 0, 0.0, 0)] * lanes)


def initial_state(params: Any, optimizer: optax.GradientTransformation, lanes: int) -> LaneState:
    """Every lane at the SFT weights `params` (no lane axis) with a fresh optimiser, idle."""

    def spread(x):
        return jnp.broadcast_to(x, (lanes, *jnp.shape(x)))

    return LaneState(
        jax.tree.map(spread, params),
        jax.tree.map(spread, optimizer.init(params)),
        jnp.zeros(lanes, jnp.int32),
        jnp.zeros(lanes, bool),
    )

"""The optimiser of a lane: AdamW with a clipped gradient and a schedule over the lane's own budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

__all__ = ["OptimizerConfig", "apply", "make_optimizer", "schedule"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as preference training uses it (TRL's and the DiscoPOP paper's choices).

    Attributes:
      b1, b2, eps: Adam's.
      weight_decay: decoupled.
      clip_norm: largest global norm of a lane's gradient.
      warmup: fraction of the budget over which the learning rate rises linearly from zero.
      decay: what follows: held, or lowered to zero along a line or a cosine.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup: float = 0.1
    decay: Literal["constant", "linear", "cosine"] = "cosine"


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping and Adam. The learning rate is the lane's own, so it is applied by `apply`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
    )


def schedule(config: OptimizerConfig, step: Int[Array, ""], steps: Int[Array, ""]) -> Float[Array, ""]:
    """The factor on a lane's learning rate at `step` of `steps`, in (0, 1]."""
    done = step.astype(jnp.float32)
    total = jnp.maximum(steps.astype(jnp.float32), 1.0)
    # A little less than the product, which float32 may round up past a whole number of steps.
    warm = jnp.maximum(jnp.ceil(config.warmup * total * (1.0 - 1e-6)), 1.0)
    rising = (done + 1.0) / warm
    left = jnp.clip((total - done) / jnp.maximum(total - warm + 1.0, 1.0), 0.0, 1.0)
    falling = {
        "constant": jnp.ones_like(left),
        "linear": left,
        "cosine": 0.5 * (1.0 - jnp.cos(jnp.pi * left)),
    }[config.decay]
    return jnp.where(rising < 1.0, rising, falling)


def apply(config: OptimizerConfig, params, updates, rate: Float[Array, ""]):
    """`params - rate * (updates + weight_decay * params)`."""
    return jax.tree.map(lambda p, u: p - rate * (u + config.weight_decay * p), params, updates)

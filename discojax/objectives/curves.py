"""A loss as a curve over the margin, for people to look at."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from discojax.objectives.types import LogProbs, Objective

__all__ = ["Curve", "curve"]


class Curve(NamedTuple):
    """The loss and its slope at each margin."""

    values: Float[Array, " margins"]
    slopes: Float[Array, " margins"]


def curve(
    objective: Objective,
    beta: float,
    margins: ArrayLike,
    *,
    reference_logp: float = -40.0,
    length: int = 20,
) -> Curve:
    """The loss of a pair as its log-ratio margin ρ grows, and d loss / dρ.

    The reference holds both completions equally likely, and the margin is split evenly: the
    policy gives the chosen ρ/2 more, the rejected ρ/2 less. A loss with batch statistics sees a
    batch whose pairs all have that margin, so its curve leaves out what their spread does.

    Args:
      objective: the loss.
      beta: the penalty's strength.
      margins: the margins ρ, in nats, `[margins]`.
      reference_logp: log-probability of either completion under the reference, in nats; it matters
        to losses that are not functions of the margin alone.
      length: tokens of either completion, likewise.

    Returns:
      Values and slopes, float32 `[margins]`.
    """
    pairs = max(2, objective.minimum_batch)
    reference = jnp.full(pairs, reference_logp, jnp.float32)
    lengths = jnp.full(pairs, length, jnp.int32)

    def loss(margin: Float[Array, ""]) -> Float[Array, ""]:
        logps = LogProbs(
            reference + margin / 2, reference - margin / 2, reference, reference, lengths, lengths
        )
        return jnp.mean(objective(logps, beta))

    values, slopes = jax.vmap(jax.value_and_grad(loss))(jnp.asarray(margins, jnp.float32))
    return Curve(values, slopes)

"""What a program does, as numbers: its value and slope on a fixed grid of margins.

Two texts may differ and teach alike, so novelty is measured here and not on the text. The same
numbers draw the curve of a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from discojax.candidates.graph import Node
from discojax.candidates.lowering import interpret
from discojax.objectives.types import ARGUMENTS

__all__ = ["BETA", "MARGINS", "Behaviour", "behaviour", "distance"]

BETA = 0.1
MARGINS: Float[np.ndarray, " margins"] = np.linspace(-5.0, 5.0, 41, dtype=np.float32)
"""beta times the log-ratio: 0 is where training starts, 5 a preference of 150 to 1."""

_REFERENCE, _LENGTH = -100.0, 50.0


@dataclass(frozen=True)
class Behaviour:
    """A loss along `MARGINS`, at beta 0.1, reference log-probs of -100 and 50 tokens.

    Attributes:
      values: the loss of each margin; batch statistics are taken over the grid.
      slopes: the derivative of the sum of the losses in the margin.
    """

    values: Float[np.ndarray, " margins"]
    slopes: Float[np.ndarray, " margins"]

    @property
    def descriptor(self) -> Float[np.ndarray, " twice_margins"]:
        """Value and slope without the loss's offset and scale, for distances.

        Beta and the learning rate absorb both. What is not finite is 0.
        """
        scale = (
            np.abs(self.slopes[np.isfinite(self.slopes)]).mean() if np.isfinite(self.slopes).any() else 0.0
        )
        values = (self.values - self.values[len(MARGINS) // 2]) / max(scale, 1e-12)
        squashed = np.concatenate([np.arcsinh(values), np.arcsinh(self.slopes / max(scale, 1e-12))])
        return np.nan_to_num(squashed, nan=0.0, posinf=0.0, neginf=0.0)


def behaviour(graph: Node) -> Behaviour:
    """Evaluates a program on the grid; milliseconds, once JAX has compiled each operator."""
    ratio = jnp.asarray(MARGINS / BETA)
    same = jnp.full_like(ratio, _REFERENCE)
    lengths = jnp.full_like(ratio, _LENGTH)

    def losses(ratio):
        chosen, rejected = same + ratio / 2, same - ratio / 2
        given = (chosen, rejected, same, same, jnp.float32(BETA), lengths, lengths, jnp.float32(0.5))
        return interpret(graph, dict(zip(ARGUMENTS, given, strict=True)))

    values, pullback = jax.vjp(losses, ratio)
    (slopes,) = pullback(jnp.ones_like(values))
    return Behaviour(np.asarray(values), np.asarray(slopes) / np.float32(BETA))


def distance(a: Behaviour, b: Behaviour) -> float:
    """Root mean square difference of two descriptors: 0 for losses equal up to offset and scale."""
    return float(np.sqrt(np.square(a.descriptor - b.descriptor).mean()))

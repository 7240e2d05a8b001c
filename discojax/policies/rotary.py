"""Rotary positions: pairs of a head's features turned by an angle that grows with the position."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from discojax.policies.architecture import Rope

__all__ = ["Angles", "angles", "frequencies", "rotate"]


class Angles(NamedTuple):
    """Cosines and sines, float32, for each position, shaped to broadcast over heads."""

    cos: Float[Array, "*positions 1 half"]
    sin: Float[Array, "*positions 1 half"]


def frequencies(rope: Rope, head_size: int) -> tuple[Float[np.ndarray, " half"], float]:
    """Radians a token for each pair of features, and what cosines and sines are multiplied by.

    The same as Transformers' `ROPE_INIT_FUNCTIONS` of the same kind.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float64) / head_size
    turning = rope.theta**-exponents
    if rope.kind == "linear":
        return (turning / rope.factor).astype(np.float32), 1.0
    if rope.kind == "llama3":
        turns = rope.original_max_position_embeddings * turning / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        return _stretched(turning, rope.factor, np.clip(kept, 0, 1)), 1.0
    if rope.kind == "yarn":
        first, last = (_pair_of_turns(rope, head_size, turns) for turns in (rope.beta_fast, rope.beta_slow))
        low, high = max(math.floor(first), 0), min(math.ceil(last), head_size - 1)
        ramp = (np.arange(head_size // 2) - low) / max(high - low, 0.001)
        scale = 1.0 if rope.factor <= 1 else 0.1 * math.log(rope.factor) + 1.0
        scale = scale if rope.attention_factor is None else rope.attention_factor
        return _stretched(turning, rope.factor, 1 - np.clip(ramp, 0, 1)), scale
    return turning.astype(np.float32), 1.0


def _stretched(turning: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    return (kept * turning + (1 - kept) * turning / factor).astype(np.float32)


def _pair_of_turns(rope: Rope, head_size: int, turns: float) -> float:
    """Which pair, a fraction, makes so many turns over the length first trained on."""
    tokens_a_turn = rope.original_max_position_embeddings / (turns * 2 * math.pi)
    return head_size * math.log(tokens_a_turn) / (2 * math.log(rope.theta))


def angles(rope: Rope, head_size: int, positions: Int[Array, "*positions"]) -> Angles:
    """Cosines and sines of these positions."""
    turning, scale = frequencies(rope, head_size)
    radians = positions.astype(jnp.float32)[..., None, None] * turning
    return Angles(jnp.cos(radians) * scale, jnp.sin(radians) * scale)


def rotate(x: Float[Array, "batch time heads head"], given: Angles) -> Float[Array, "batch time heads head"]:
    """Turns feature `i` with feature `i + head / 2` (the halves of Transformers' `rotate_half`)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * given.cos - second * given.sin, second * given.cos + first * given.sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)

"""Soft-capping, as Gemma 2 bounds the logits of its attention and of its tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

__all__ = ["soft_cap", "soft_cap_slope"]


def soft_cap(logits: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(logits / cap)`; `logits` themselves where `cap` is None."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def soft_cap_slope(capped: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"] | float:
    """The derivative of `soft_cap`, from what it returned."""
    return 1.0 if cap is None else 1.0 - (capped / cap) ** 2

"""Soft-capping, as Gemma 2 bounds the logits of its attention and of its tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

__all__ = ["soft_cap"]


def soft_cap(logits: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(logits / cap)`; `logits` themselves where `cap` is None."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)

"""The order in which a lane sees the data: a function of its seed and step alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

__all__ = ["batch_indices"]


def batch_indices(
    seed: Int[Array, ""], step: Int[Array, ""], *, pairs: int, batch: int
) -> Int[Array, " batch"]:
    """Which pairs make up the batch of this step.

    Each epoch is a fresh permutation of `pairs // batch` whole batches, from `(seed, epoch)`. No
    state is kept, so a lane can stop and resume anywhere, and lanes with one seed share the order
    whatever else differs (common random numbers).
    """
    per_epoch = pairs // batch
    key = jax.random.fold_in(jax.random.key(seed), step // per_epoch)
    order = jax.random.permutation(key, pairs)
    return jax.lax.dynamic_slice_in_dim(order, (step % per_epoch) * batch, batch).astype(jnp.int32)
